"""Scalings of the frequencies of rotary embeddings, one in each file."""

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.nn.rope.dynamic_scaling import DynamicScaling
from jaxtrain.nn.rope.linear_scaling import LinearScaling
from jaxtrain.nn.rope.llama3_scaling import Llama3Scaling
from jaxtrain.nn.rope.long_rope_scaling import LongRopeScaling
from jaxtrain.nn.rope.yarn_scaling import YarnScaling

__all__ = [
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "RopeScaling",
    "YarnScaling",
]
