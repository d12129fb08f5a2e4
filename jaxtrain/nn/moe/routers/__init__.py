"""What is said of each token and each expert, one way in each file."""

from jaxtrain.nn.moe.routers.base import Router
from jaxtrain.nn.moe.routers.by_task import ByTask
from jaxtrain.nn.moe.routers.equal import Equal
from jaxtrain.nn.moe.routers.fixed import Fixed
from jaxtrain.nn.moe.routers.input_dropout import InputDropout
from jaxtrain.nn.moe.routers.jitter import Jitter
from jaxtrain.nn.moe.routers.product_keys import ProductKeys
from jaxtrain.nn.moe.routers.sigmoid import Sigmoid
from jaxtrain.nn.moe.routers.softmax import Softmax
from jaxtrain.nn.moe.routers.stable import Stable

__all__ = [
    "ByTask",
    "Equal",
    "Fixed",
    "InputDropout",
    "Jitter",
    "ProductKeys",
    "Router",
    "Sigmoid",
    "Softmax",
    "Stable",
]
