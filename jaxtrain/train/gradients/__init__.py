"""Gradient strategies, one in each file. A new one is a frozen dataclass that is a `Strategy`."""

from jaxtrain.train.gradients.accumulate import Accumulate
from jaxtrain.train.gradients.base import Loss, Strategy, Value, deal_out
from jaxtrain.train.gradients.pipelined import Pipelined

__all__ = ["Accumulate", "Loss", "Pipelined", "Strategy", "Value", "deal_out"]
