"""Learning-rate schedules, one in each file. See `base.Schedule`."""

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.optim.schedules.constant import Constant
from jaxtrain.optim.schedules.cosine import Cosine
from jaxtrain.optim.schedules.inverse_square_root import InverseSquareRoot
from jaxtrain.optim.schedules.linear import Linear
from jaxtrain.optim.schedules.warmup_stable_decay import WarmupStableDecay

__all__ = [
    "Constant",
    "Cosine",
    "InverseSquareRoot",
    "Linear",
    "Schedule",
    "WarmupStableDecay",
]
