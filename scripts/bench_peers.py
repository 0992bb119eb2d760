"""Other training programs for ``bench.py``, those that are installed.

skorch, Keras on torch, Accelerate and the Trainer of transformers train the same net on the same
batches with Adam, and compute metrics on the validation rows after each epoch, each in the way that
its documentation shows. They are the metrics of ``bench.py``, except that precision and recall of
Keras count all classes together. The programs are not part of this project:

    python -m pip install skorch keras accelerate transformers
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
from torch.utils.data import DataLoader, Dataset, TensorDataset

Split = tuple[Tensor, Tensor]


def splits(folder: Path) -> tuple[Split, Split]:
    """Return the rows and classes of the training and the validation split."""
    with np.load(folder / "data.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    return (data["x_train"], data["y_train"]), (data["x_val"], data["y_val"])


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
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        batch_size=work.batch,
        max_epochs=work.epochs,
        iterator_train__shuffle=True,
        train_split=predefined_split(TensorDataset(*val)),
        callbacks=[Wait(), *scores],
    )
    net.fit(*train)
    return float(max(net.history[:, "valid_acc"]))


def keras(work: Any, folder: Path, turns: Any) -> float:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    train, val = splits(folder)

    class Wait(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            turns.wait()

    layers = [keras.layers.Dense(size, activation="relu") for size in work.sizes[1:-1]]
    model = keras.Sequential([keras.Input((work.sizes[0],)), *layers])
    model.add(keras.layers.Dense(work.classes, activation="softmax"))
    kinds = (keras.metrics.Precision, keras.metrics.Recall)
    metrics = ["accuracy", *(kind() for kind in kinds), keras.metrics.F1Score("macro")]
    model.compile(keras.optimizers.Adam(1e-3), "categorical_crossentropy", metrics=metrics)
    inputs = [(x.numpy(), np.eye(work.classes, dtype=np.float32)[y]) for x, y in (train, val)]
    history = model.fit(
        *inputs[0],
        batch_size=work.batch,
        epochs=work.epochs,
        validation_data=inputs[1],
        callbacks=[Wait()],
        verbose=0,
    )
    return float(max(history.history["val_accuracy"]))


def accelerate(work: Any, folder: Path, turns: Any) -> float:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=work.accelerator == "cpu")
    train, val = splits(folder)
    net: Any = work.net(work.sizes)
    net, optimizer, batches, held_out = accelerator.prepare(
        net,
        torch.optim.Adam(net.parameters()),
        DataLoader(TensorDataset(*train), work.batch, shuffle=True),
        DataLoader(TensorDataset(*val), work.batch),
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


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, split: Split) -> None:
        self.x, self.y = split

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "labels": self.y[i]}


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
        per_device_eval_batch_size=work.batch,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=work.accelerator == "cpu",
    )
    trainer = Trainer(
        WithLoss(work.net(work.sizes)),
        arguments,
        train_dataset=Rows(train),
        eval_dataset=Rows(val),
        compute_metrics=lambda p: four_scores(p.label_ids, p.predictions.argmax(1)),
        callbacks=[Wait()],
    )
    trainer.train()
    return max(entry.get("eval_accuracy", 0.0) for entry in trainer.state.log_history)


# The function of each package that is installed. Keras builds layers of its own, so it trains nets
# of linear layers only.
PEERS = {f.__name__: f for f in (skorch, keras, accelerate, transformers) if find_spec(f.__name__)}
