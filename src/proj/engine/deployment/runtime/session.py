"""The net of a bundle: ONNX with onnxruntime, or a program of torch.export."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Inputs = Mapping[str, Array]


class OnnxNet:
    """A net in a file ``.onnx``."""

    def __init__(self, path: Path, inputs: Sequence[str], threads: int | None) -> None:
        import onnxruntime  # A bundle of the other format does not need it.

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Warnings are about the speed of single nodes.
        if threads is not None:
            options.intra_op_num_threads = threads
        # The content, so that a file beside the model cannot become a part of it.
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers)
        self.inputs = inputs

    def __call__(self, x: Inputs) -> Array:
        output: Array = self.session.run(None, {name: x[name] for name in self.inputs})[0]
        return output


class TorchNet:
    """A net in a file ``.pt2``: a program that torch.export wrote, or one that is compiled."""

    def __init__(self, path: Path, inputs: Sequence[str], compiled: bool) -> None:
        import torch  # Bundles in ONNX do not need it.

        self.torch, self.inputs = torch, inputs
        if compiled:
            from torch._inductor import aoti_load_package  # It takes seconds to import.

            self.net: Any = aoti_load_package(str(path))
        else:
            self.net = torch.export.load(str(path)).module()

    def __call__(self, x: Inputs) -> Array:
        with self.torch.inference_mode():
            # torch warns of arrays that are read-only.
            arrays = [np.require(x[name], requirements="W") for name in self.inputs]
            tensors = [self.torch.from_numpy(array) for array in arrays]
            output: Array = self.net(*tensors).numpy()
        return output


def open_net(folder: Path, spec: Mapping[str, Any], threads: int | None) -> OnnxNet | TorchNet:
    """Open the net that ``model`` in ``bundle.json`` describes."""
    path = folder / spec["file"]
    if spec["format"] == "onnx":
        return OnnxNet(path, spec["inputs"], threads)
    return TorchNet(path, spec["inputs"], spec["format"] == "aot")
