"""Which parameters of a model are trained, one choice in each file. All others are frozen."""

from jaxtrain.nn.trainable.adapters import Adapters
from jaxtrain.nn.trainable.base import Trainable, freeze_all, freeze_others
from jaxtrain.nn.trainable.everything import Everything
from jaxtrain.nn.trainable.except_ import Except
from jaxtrain.nn.trainable.only import Only
from jaxtrain.nn.trainable.only_norms import OnlyNorms

__all__ = ["Adapters", "Everything", "Except", "Only", "OnlyNorms", "Trainable", "freeze_all", "freeze_others"]
