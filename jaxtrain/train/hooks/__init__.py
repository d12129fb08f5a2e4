"""Hooks: called between steps on the host, each a frozen configuration with methods. See `base.Hook`."""

from jaxtrain.train.hooks.average import ExponentialMovingAverage, LatestWeightAverage
from jaxtrain.train.hooks.base import Hook
from jaxtrain.train.hooks.checkpoint import Checkpoint
from jaxtrain.train.hooks.early_stop import EarlyStop
from jaxtrain.train.hooks.evaluate import Evaluate
from jaxtrain.train.hooks.router_report import RouterReport
from jaxtrain.train.hooks.sample import Sample

__all__ = [
    "Checkpoint",
    "EarlyStop",
    "Evaluate",
    "ExponentialMovingAverage",
    "Hook",
    "LatestWeightAverage",
    "RouterReport",
    "Sample",
]
