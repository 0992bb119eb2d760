"""The LightningModules: one class per task, on one base."""

from proj.models.base import Model
from proj.models.classification import BinaryClassifier, MulticlassClassifier, MultilabelClassifier
from proj.models.regression import Regressor

__all__ = [
    "BinaryClassifier",
    "Model",
    "MulticlassClassifier",
    "MultilabelClassifier",
    "Regressor",
]
