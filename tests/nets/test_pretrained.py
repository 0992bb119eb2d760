"""Nets of transformers: their own outputs, from a folder that only the training needs."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import proj
from conftest import Cli
from proj.engine import security
from proj.engine.runs.checkpoint_file import read_checkpoint
from proj.errors import UserError
from proj.models.optim import layer_scales
from proj.nets.pretrained import Pretrained
from proj.schema import Schema

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT: dict[str, Any] = {**SMALL, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "image_mean": MEAN, "image_std": STD}
SCHEMA = Schema.of((3, 16, 16), classes=["cat", "dog", "owl"])


def save(path: str, model: Any, processor: dict[str, Any] | None = PROCESSOR) -> Any:
    """Write the folder of a net, and return the net."""
    model.save_pretrained(path)
    if processor is not None:
        Path(path, "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.fixture
def vit(work: Path) -> Any:
    """A tiny ViT with random weights, in the folder ``vit``."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    return save("vit", transformers.ViTModel(transformers.ViTConfig(**VIT)))


@pytest.fixture
def pictures(work: Path) -> Path:
    """A folder of images whose color is their class, and an experiment about it."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "owl")):
        Path("pictures", name).mkdir(parents=True)
        for i in range(14):
            pixels = rng.integers(0, 150, (12, 12, 3), dtype=np.uint8)
            pixels[..., number] += 80
            Image.fromarray(pixels).save(f"pictures/{name}/{i}.png")
    net = {"class_path": "Pretrained", "init_args": {"path": "vit"}}
    finetuning = {
        "class_path": "BackboneFinetuning",
        "init_args": {"unfreeze_backbone_at_epoch": 1},
    }
    config = {
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "callbacks": [finetuning]},
        "model": {
            "class_path": "MulticlassClassifier",
            "init_args": {"net": net, "layer_decay": 0.75},
        },
        "data": {"class_path": "Images", "init_args": {"path": "pictures", "batch_size": 8}},
        "checkpoint": {"every_n_steps": 1},
    }
    path = work / "pictures.yaml"
    path.write_text(json.dumps(config))
    return path


def test_without_transformers_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other net needs the package, and its module does not import it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"expected the package transformers \('.\[pretrained\]'\)"):
        Pretrained(SCHEMA, "vit")


def test_outputs_are_those_of_transformers(vit: Any) -> None:
    """Its image processor prepares the images, and its own class reads the folder."""
    import transformers

    net = Pretrained(SCHEMA, "vit").eval()
    theirs = transformers.ViTForImageClassification.from_pretrained("vit", num_labels=3).eval()
    theirs.classifier.load_state_dict(net.model.classifier.state_dict())
    prepare = transformers.ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    expected = theirs(**prepare(list(images), return_tensors="pt")).logits
    with torch.no_grad():
        got = net(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [8, 40])
def test_images_get_the_size_and_the_channels_of_the_net(side: int, vit: Any) -> None:
    import transformers

    net = Pretrained(Schema.of((1, side, side), classes=["cat", "dog", "owl"]), "vit").eval()
    y, x = np.mgrid[:side, :side] / side
    image = (127 + 120 * np.sin(3 * x + 2 * y)).astype(np.uint8)
    prepare = transformers.ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD, resample=2
    )
    expected = prepare(np.stack([image] * 3, -1), return_tensors="pt")["pixel_values"]
    got = net._prepare(torch.from_numpy(image)[None, None] / 255)
    assert (got - expected).abs().max() < 0.03  # Pillow rounds to whole numbers of 255.


def test_a_head_of_other_classes_is_not_taken(work: Path) -> None:
    """Two folders with as many classes are not about the same classes."""
    import transformers

    config = transformers.ViTConfig(**VIT, num_labels=3)
    saved = save("vit", transformers.ViTForImageClassification(config))
    net = Pretrained(SCHEMA, "vit").model
    assert not torch.equal(net.classifier.weight, saved.classifier.weight)
    for name, value in saved.vit.state_dict().items():
        assert torch.equal(net.vit.state_dict()[name], value), name


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    "ConvNext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "image_size": 32},
    "Swin": {
        "image_size": 32,
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "Dinov2": {**SMALL, "image_size": 28, "patch_size": 14},
    "Beit": {**SMALL, "image_size": 32, "patch_size": 16, "intermediate_size": 16},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures(name: str, work: Path) -> None:
    """Shape of the outputs, the backbone, and rates that fall from the head to the embeddings."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name])
    save("net", getattr(transformers, f"{name}Model")(config))
    net = Pretrained(SCHEMA, "net")
    assert net(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    scales = layer_scales(net, 0.5)
    head = {n for n, _ in net.named_parameters() if "classifier" in n}
    assert {scales[n] for n in head} == {1.0}
    in_backbone = {id(p) for p in net.backbone.parameters()}
    assert {n for n, p in net.named_parameters() if id(p) not in in_backbone} == head
    embeddings = [s for n, s in scales.items() if "embed" in n and "position_bias" not in n]
    assert set(embeddings) == {min(scales.values())}
    assert len(set(scales.values())) >= 3


@pytest.mark.long
def test_no_verb_but_fit_needs_the_folder(vit: Any, pictures: Path, cli: Cli) -> None:
    """The run also resumes to the same bits, with an unfrozen backbone."""
    cli("fit", "--config", pictures, "--name", "whole")
    cli("fit", "--config", pictures, "--name", "run", "--trainer.max_epochs", "2")
    shutil.rmtree("vit")
    cli("fit", "--resume", "run", "--trainer.max_epochs", "3")
    states = [
        read_checkpoint(Path(f"lightning_logs/{name}/checkpoints/last.ckpt"))["state_dict"]
        for name in ("whole", "run")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    first = states[1]["net.model.vit.layers.0.mlp.fc1.weight"]
    assert not torch.equal(first, vit.layers[0].mlp.fc1.weight)

    cli("test", "--run", "run")
    cli("predict", "--run", "run", "--data.predict_path", "pictures/cat", "--output", "cats.csv")
    answers = pl.read_csv("cats.csv")
    files = [str(Path("pictures/cat", name)) for name in answers["file"]]
    loaded = proj.load("run").predict(files)
    columns = [f"probability_{name}" for name in ("cat", "dog", "owl")]
    torch.testing.assert_close(
        loaded[columns].to_torch(), answers[columns].to_torch(), rtol=1e-5, atol=1e-6
    )
    for form in ("torch", "onnx"):
        out = cli("export", "--run", "run", "--format", form, "--output", f"bundle_{form}")
        assert "proof: " in out


HOSTILE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "code beside the config": lambda config: {
        **config,
        "auto_map": {
            "AutoConfig": "evil.Config",
            "AutoModelForImageClassification": "evil.Net",
        },
    },
    "code from the hub": lambda config: {
        **config,
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_attn_implementation_internal": "evil/kernel",
    },
    "a package for quantized weights": lambda config: {
        **config,
        "quantization_config": {"quant_method": "awq", "bits": 4},
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_config_of_a_folder_runs_no_code(kind: str, vit: Any) -> None:
    path = Path("vit/config.json")
    path.write_text(json.dumps(HOSTILE[kind](json.loads(path.read_text()))))
    for name in ("vit/evil.py", "evil.py"):
        Path(name).write_text("from pathlib import Path\nPath('ran').touch()\n")
    net = Pretrained(SCHEMA, "vit")
    found = json.loads(net.net_config)
    found["config"] = HOSTILE[kind](found["config"])
    of_checkpoint = Pretrained(replace(SCHEMA, net_config=json.dumps(found)), "vit")
    for each in (net, of_checkpoint):
        assert each(torch.rand(2, 3, 16, 16)).shape == (2, 3)
        assert not Path("ran").exists()
        assert "evil" not in each.model.config._attn_implementation
        assert not hasattr(each.model.config, "auto_map")


def test_pickled_weights_are_not_read(vit: Any) -> None:
    Path("vit/model.safetensors").unlink()
    torch.save(vit.state_dict(), "vit/pytorch_model.bin")
    with pytest.raises(UserError, match=r"got vit \(.*safetensors"):
        Pretrained(SCHEMA, "vit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "timm_wrapper", "architecture": "resnet18"}, "an architecture of timm"),
        ({"vision_config": {"model_type": "timm_wrapper"}}, "an architecture of timm"),
        ({"model_type": "nope"}, "nope"),
        ({"model_type": "dinov3_vit"}, "Unrecognized configuration class"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_an_architecture_without_a_classifier_is_an_error(
    change: dict[str, Any], message: str, vit: Any
) -> None:
    path = Path("vit/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"net Pretrained: expected .* got vit \(.*({message})"):
        Pretrained(SCHEMA, "vit")


def test_other_inputs_are_an_error(vit: Any) -> None:
    net = Pretrained(SCHEMA, "vit")
    with pytest.raises(UserError, match="expected images as a tensor for ViTForImageClass"):
        net({"input_ids": torch.zeros(1, 2)})
    with pytest.raises(UserError, match=r"expected images with 1 channel or 3, .* \(2, 16, 16\)"):
        Pretrained(Schema.of((2, 16, 16), classes=[0, 1]), "vit")
    Path("vit/preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json with image_mean"):
        Pretrained(SCHEMA, "vit")
    with pytest.raises(UserError, match="got no_folder"):
        Pretrained(SCHEMA, "no_folder")


def test_weights_that_are_missing_are_named(vit: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file("vit/model.safetensors")
    del tensors["layernorm.bias"]
    save_file(tensors, "vit/model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=r"vit has no weights for vit\.layernorm\.bias\."):
        Pretrained(SCHEMA, "vit")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:TensorBoard shows no graph")
def test_a_class_of_transformers_itself(
    pictures: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are an object with ``logits``. The package needs ``--allow``."""
    options = {**VIT, "image_size": 12, "id2label": {"0": "cat", "1": "dog", "2": "owl"}}
    config = {"class_path": "transformers.ViTConfig", "init_args": options}
    net = {"class_path": "transformers.ViTForImageClassification", "init_args": {"config": config}}
    experiment = json.loads(pictures.read_text())
    experiment["model"]["init_args"] = {"net": net}
    experiment["trainer"] = {"max_epochs": 1, "accelerator": "cpu"}
    pictures.write_text(json.dumps(experiment))
    # A package stays allowed in this process.
    monkeypatch.setattr(security, "allowed_packages", [])
    assert "--allow transformers" in cli("fit", "--config", pictures, code=2)
    cli("fit", "--config", pictures, "--allow", "transformers")
    cli("test", "--allow", "transformers")
