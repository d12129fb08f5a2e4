"""Rotary embeddings and their scalings, one in each file."""

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.nn.rope.linear_scaling import LinearScaling
from jaxtrain.nn.rope.llama3_scaling import Llama3Scaling
from jaxtrain.nn.rope.rope import RopeConfig, rotate

__all__ = ["LinearScaling", "Llama3Scaling", "RopeConfig", "RopeScaling", "rotate"]
