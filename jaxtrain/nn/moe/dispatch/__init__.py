"""How tokens come to their experts, one way in each file. All compute the same sum."""

from jaxtrain.nn.moe.dispatch.auto import Auto
from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.capacity import Capacity
from jaxtrain.nn.moe.dispatch.dropless import Dropless
from jaxtrain.nn.moe.dispatch.every_expert import EveryExpert
from jaxtrain.nn.moe.dispatch.exchange import Exchange
from jaxtrain.nn.moe.dispatch.materialise import Materialise

__all__ = ["Auto", "Capacity", "Dispatch", "Dropless", "EveryExpert", "Exchange", "Materialise"]
