"""Remat policies, one in each file. A new one is a frozen dataclass that is a `RematPolicy`."""

from jaxtrain.nn.remat.base import RematPolicy
from jaxtrain.nn.remat.full_remat import FullRemat
from jaxtrain.nn.remat.no_remat import NoRemat
from jaxtrain.nn.remat.offload_outputs import OffloadOutputs
from jaxtrain.nn.remat.save_dots import SaveDots
from jaxtrain.nn.remat.save_exchanged import SaveExchanged
from jaxtrain.nn.remat.save_outputs import SaveOutputs

__all__ = ["FullRemat", "NoRemat", "OffloadOutputs", "RematPolicy", "SaveDots", "SaveExchanged", "SaveOutputs"]
