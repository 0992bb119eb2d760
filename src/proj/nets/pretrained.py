"""Nets of Hugging Face's transformers for images and texts, with pretrained weights."""

import json
import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from proj.errors import UserError
from proj.schema import Schema

# Entries of a config.json that let transformers import other code, or describe other outputs.
LEFT_OUT = ("auto_map", "quantization_config", "id2label", "label2id", "num_labels", "problem_type")


class Pretrained(nn.Module):
    """A net of transformers with pretrained weights and a new output layer for the data.

    The folder is read once, at the start of a training. From then on the schema holds the
    architecture and the checkpoint the weights, so that no other verb needs the folder. Nothing is
    downloaded, and the weights are read from safetensors only, which hold no code.

    Args:
        schema: schema of the data: images [channels, height, width], or texts as a dict of
            ``input_ids`` and ``attention_mask`` [rows, tokens].
        path: folder with ``config.json``, ``model.safetensors`` and for images
            ``preprocessor_config.json``, or the name of a model that ``hf download`` has fetched.
        size: height and width that images are resized to; null takes the net's ``image_size``, and
            leaves images as they are if the net has none.
    """

    def __init__(self, schema: Schema, path: str, size: int | None = None) -> None:
        super().__init__()
        try:
            found = json.loads(schema.net_config) if schema.net_config else _read_folder(path)
            found["config"] = {k: v for k, v in found["config"].items() if k not in LEFT_OUT}
            self.model = _build(found["config"], schema.num_outputs)
            if not schema.net_config:
                _load_weights(self.model, path, found["config"], schema.num_outputs)
        except Exception as error:  # transformers and safetensors have errors of many types.
            raise UserError(
                "net Pretrained: expected the package transformers ('.[pretrained]'), and as "
                "model.net.path a folder, or a model that `hf download` has fetched, with the "
                "config.json and model.safetensors of a net that transformers has a classifier of "
                f"images or texts for, got {path} ({' '.join(str(error).split())[:200]})."
            ) from error
        self.net_config = json.dumps(found)  # The model puts it into its schema.
        # Tracing reads it, and transformers would log that a backbone has none.
        self.model.base_model.loss_type = self.model.loss_type
        self.channels = 0
        if self.model.main_input_name != "pixel_values":
            return
        config = getattr(self.model.config, "vision_config", self.model.config)
        side = size or getattr(config, "image_size", None)
        self.size = (side, side) if isinstance(side, int) else side and tuple(side)
        self.channels = getattr(config, "num_channels", 3)
        if schema.input_shape[0] not in (1, self.channels) or "mean" not in found:
            raise UserError(
                f"net Pretrained: expected images with 1 channel or {self.channels}, and a file "
                "preprocessor_config.json with image_mean and image_std beside config.json, got "
                f"rows of shape {schema.input_shape} and {path}; correct one of them."
            )
        self.mean, self.std = (nn.Buffer(torch.tensor(found[key])) for key in ("mean", "std"))

    @property
    def backbone(self) -> nn.Module:
        """The net without its output layers."""
        backbone: nn.Module = self.model.base_model
        return backbone

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """Return raw outputs [rows, outputs].

        ``x`` are images [rows, channels, height, width] from 0 to 1, or a dict for texts.
        """
        if isinstance(x, dict) == bool(self.channels):
            kind = "images as a tensor" if self.channels else "texts as a dict with input_ids"
            raise UserError(
                f"net Pretrained: expected {kind} for {type(self.model).__name__}, got "
                f"{type(x).__name__}; change the net or the inputs of the data module."
            )
        inputs = x if isinstance(x, dict) else {"pixel_values": self._prepare(x)}
        outputs: Tensor = self.model(**inputs).logits
        return outputs

    def _prepare(self, x: Tensor) -> Tensor:
        """Return images with the channels, the size and the scale of the pretrained weights."""
        x = x.expand(-1, self.channels, -1, -1)
        if self.size and tuple(x.shape[2:]) != self.size:
            # torch resizes no 16-bit numbers on CPUs.
            floats = x.to(torch.promote_types(x.dtype, torch.float32))
            x = interpolate(floats, self.size, mode="bilinear", antialias=True).to(x.dtype)
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


# Importing transformers takes long, and most runs do not need it, so the functions import it.


def _read_folder(path: str) -> dict[str, Any]:
    """Return the architecture in a folder as plain values, and mean and std of its images."""
    from transformers import ImageProcessingMixin, PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(path, local_files_only=True)
    found = {"config": config}
    try:
        images, _ = ImageProcessingMixin.get_image_processor_dict(path, local_files_only=True)
    except OSError:  # A folder of a net for texts has no such file.
        return found
    if not images.get("do_normalize", True):
        return found | {"mean": [0.0], "std": [1.0]}
    names = {"mean": "image_mean", "std": "image_std"}
    return found | {key: images[name] for key, name in names.items() if name in images}


def _build(values: dict[str, Any], outputs: int) -> Any:
    """Return a net of transformers' own code with random weights, in torch's default type."""
    import transformers as hf

    if '"model_type": "timm' in json.dumps(values):  # It would ask the hub for nets.
        raise ValueError("an architecture of timm")
    config = hf.AutoConfig.for_model(**values, num_labels=outputs)
    is_image = type(config) in hf.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    auto: Any = hf.AutoModelForSequenceClassification
    if is_image:
        auto = hf.AutoModelForImageClassification
    return auto.from_config(config, trust_remote_code=False, **_options())


def _options() -> dict[str, Any]:
    # A config could name code from the hub as its attention.
    return {"dtype": torch.get_default_dtype(), "attn_implementation": None}


def _load_weights(model: Any, path: str, values: dict[str, Any], outputs: int) -> None:
    """Load the weights of a folder, except for those of the output layer."""
    from transformers.utils import logging

    with torch.device("meta"):
        wider = _build(values, outputs + 1).state_dict()
    new = {name for name, value in model.state_dict().items() if value.shape != wider[name].shape}
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # Its table of tensors comes below as one warning.
    logging.disable_progress_bar()
    loaded, report = type(model).from_pretrained(
        path,
        config=deepcopy(model.config),
        local_files_only=True,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **_options(),
    )
    logging.set_verbosity(verbosity)
    if has_bars:
        logging.enable_progress_bar()
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])} - new
    if missing:
        warnings.warn(f"{path} has no weights for {', '.join(sorted(missing))}.", stacklevel=2)
    kept = {name: value for name, value in loaded.state_dict().items() if name not in new}
    model.load_state_dict(kept, strict=False)
