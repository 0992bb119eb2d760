"""Other training programs for ``bench.py``, those that are installed.

skorch, Keras on torch, Accelerate and the Trainer of transformers train the same net on batches of
the same size with the same Adam, and compute the same metrics on the validation rows after each
epoch. pytorch_tabular trains its CategoryEmbeddingModel on a table. The programs are not part of
this project. They have an environment of their own, because pytorch_tabular needs older versions of
pandas and torchmetrics, and requests, which it does not declare:

    python -m venv peers
    peers/bin/python -m pip install . skorch keras accelerate transformers pytorch_tabular requests
    peers/bin/python scripts/bench.py --work tiny mid table --rounds 1

Each program has the fastest settings that its documentation gives: the fused Adam (Keras has its
own), no checkpoints, no progress bar, no logging, large batches in validation, and a data set that
returns whole batches (``Dataset.__getitems__``), which is not the default of any of them. Keras
wraps the torch net, whose steps are faster than those of Keras' own layers, and takes part with and
without ``jit_compile``. pytorch_tabular offers less: it fetches rows singly, validates in batches
of the training size, writes to TensorBoard, and averages the metrics of batches, also in training.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

VALIDATION_BATCH = 8192


class Rows(Dataset[Any]):
    """Rows of a split. A DataLoader with ``collate_fn=whole`` gets each batch in one piece."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, rows: list[int]) -> Any:
        return self.x[rows], self.y[rows]


def whole(batch: Any) -> Any:
    return batch


def splits(folder: Path) -> tuple[Rows, Rows]:
    """Return the training and the validation split."""
    with np.load(folder / "data.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    return Rows(data["x_train"], data["y_train"]), Rows(data["x_val"], data["y_val"])


def four_scores(target: Any, predicted: Any) -> dict[str, float]:
    scores = precision_recall_fscore_support(target, predicted, average="macro", zero_division=0)
    names = ("precision", "recall", "f1")
    return {"accuracy": accuracy_score(target, predicted), **dict(zip(names, scores, strict=False))}


def skorch(work: Any, folder: Path, turns: Any) -> float:
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback, EpochScoring
    from skorch.helper import predefined_split

    train, val = splits(folder)

    class Wait(Callback):
        def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
            turns.wait()

    names = ("precision_macro", "recall_macro", "f1_macro")
    scores = [EpochScoring(name, lower_is_better=False, name=name) for name in names]
    net = NeuralNetClassifier(
        work.net,
        module__sizes=work.sizes,
        classes=range(work.classes),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=1e-3,
        batch_size=work.batch,
        max_epochs=work.epochs,
        iterator_train__shuffle=True,
        iterator_train__collate_fn=whole,
        iterator_valid__collate_fn=whole,
        iterator_valid__batch_size=VALIDATION_BATCH,
        train_split=predefined_split(val),
        callbacks=[Wait(), *scores],
        device=work.device,
        verbose=0,
    )
    net.fit(train, None)
    return float(max(net.history[:, "valid_acc"]))


def keras(work: Any, folder: Path, turns: Any, compiled: bool = False) -> float:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    train, val = splits(folder)
    accuracies = []

    class Validate(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            turns.wait()

        # Keras' metrics would be computed in each training step, too.
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            outputs = self.model.predict(val.x.numpy(), batch_size=VALIDATION_BATCH, verbose=0)
            accuracies.append(four_scores(val.y, outputs.argmax(1))["accuracy"])

    net = keras.layers.TorchModuleWrapper(work.net(work.sizes), output_shape=(work.classes,))
    model = keras.Sequential([keras.Input((work.sizes[0],)), net])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-8), loss, jit_compile=compiled)
    model.fit(
        train.x.numpy(),
        train.y.numpy(),
        batch_size=work.batch,
        epochs=work.epochs,
        callbacks=[Validate()],
        verbose=0,
    )
    return max(accuracies)


def keras_compiled(work: Any, folder: Path, turns: Any) -> float:
    return keras(work, folder, turns, compiled=True)


def accelerate(work: Any, folder: Path, turns: Any) -> float:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=work.accelerator == "cpu")
    train, val = splits(folder)
    net: Any = work.net(work.sizes)
    net, optimizer, batches, held_out = accelerator.prepare(
        net,
        torch.optim.Adam(net.parameters(), fused=True),
        DataLoader(train, work.batch, shuffle=True, collate_fn=whole),
        DataLoader(val, VALIDATION_BATCH, collate_fn=whole),
    )
    accuracy = 0.0
    for _ in range(work.epochs):
        turns.wait()
        net.train()
        for x, y in batches:
            loss = cross_entropy(net(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        net.eval()
        with torch.no_grad():
            parts = [accelerator.gather_for_metrics((net(x).argmax(1), y)) for x, y in held_out]
        predicted, target = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        accuracy = max(accuracy, four_scores(target, predicted)["accuracy"])
    return accuracy


class WithLoss(nn.Module):
    """A net in the form that the Trainer of transformers takes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def transformers(work: Any, folder: Path, turns: Any) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    train, val = splits(folder)

    class Wait(TrainerCallback):  # type: ignore[misc]
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.wait()

    arguments = TrainingArguments(
        output_dir=str(folder / "transformers"),
        num_train_epochs=work.epochs,
        per_device_train_batch_size=work.batch,
        per_device_eval_batch_size=VALIDATION_BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",  # without weight decay it is Adam
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
        use_cpu=work.accelerator == "cpu",
    )
    trainer = Trainer(
        WithLoss(work.net(work.sizes)),
        arguments,
        data_collator=lambda batch: {"x": batch[0], "labels": batch[1]},
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=lambda p: four_scores(p.label_ids, p.predictions.argmax(1)),
        callbacks=[Wait()],
    )
    trainer.train()
    return max(entry.get("eval_accuracy", 0.0) for entry in trainer.state.log_history)


def pytorch_tabular(work: Any, folder: Path, turns: Any) -> float:
    import pandas as pd
    from pytorch_lightning import Callback
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    table = pd.read_csv(folder / "table.csv")
    splits = dict(list(table.groupby(table.pop("split"))))
    features = [name for name in table if name != "class"]
    texts = [name for name in features if table[name].dtype == object]
    accuracies = [0.0]

    class Wait(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            turns.wait()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            accuracies.append(float(trainer.callback_metrics["valid_accuracy"]))

    macro = {"average": "macro"}
    os.chdir(folder)  # It writes into the current folder.
    model = TabularModel(
        data_config=DataConfig(["class"], [n for n in features if n not in texts], texts),
        model_config=CategoryEmbeddingModelConfig(
            "classification",
            layers="-".join(map(str, work.sizes[1:-1])),
            embedding_dims=[(n + 2, (n + 1) // 2) for n in work.categories],
            metrics=["accuracy", "precision", "recall", "f1_score"],
            metrics_params=[{}, macro, macro, macro],
            metrics_prob_input=[False] * 4,
        ),
        optimizer_config=OptimizerConfig(optimizer_params={"fused": True}),
        trainer_config=TrainerConfig(
            batch_size=work.batch,
            max_epochs=work.epochs,
            accelerator=work.accelerator,
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            progress_bar="none",
            trainer_kwargs={"enable_model_summary": False},
        ),
        verbose=False,
        suppress_lightning_logger=True,
    )
    model.fit(splits["train"], splits["val"], callbacks=[Wait()])
    return max(accuracies)


def installed(*packages: str) -> bool:
    return all(map(find_spec, packages))


# Programs that train any net on tensors.
PEERS: dict[str, Any] = {}
if installed("skorch"):
    PEERS["skorch"] = skorch
if installed("keras"):
    PEERS |= {"Keras": keras, "Keras, compiled": keras_compiled}
if installed("accelerate"):
    PEERS["Accelerate"] = accelerate
if installed("accelerate", "transformers"):
    PEERS["Trainer of transformers"] = transformers

# Programs that train a net of their own on a table.
TABLE_PEERS = {"pytorch_tabular": pytorch_tabular} if installed("pytorch_tabular") else {}
