"""What is said of each token and each expert, one way in each file."""

from jaxtrain.nn.moe.routers.base import Router
from jaxtrain.nn.moe.routers.sigmoid import Sigmoid
from jaxtrain.nn.moe.routers.softmax import Softmax

__all__ = ["Router", "Sigmoid", "Softmax"]
