"""Nets: plain ``nn.Module``s from inputs to raw outputs, without Lightning.

A net whose first argument is annotated as ``Schema`` is built from the schema when the data are
known. Any other net is taken as it is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proj.nets.cnn import CNN as CNN
    from proj.nets.mlp import MLP as MLP
    from proj.nets.mlp import SimpleNN as SimpleNN
    from proj.nets.pretrained import Pretrained as Pretrained
    from proj.nets.tabm import TabM as TabM

__all__ = ["CNN", "MLP", "Pretrained", "SimpleNN", "TabM"]

_MODULES = {
    "CNN": "cnn",
    "MLP": "mlp",
    "Pretrained": "pretrained",
    "SimpleNN": "mlp",
    "TabM": "tabm",
}


def __getattr__(name: str) -> Any:
    # TabM imports scikit-learn, which takes long and which other nets do not need.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
