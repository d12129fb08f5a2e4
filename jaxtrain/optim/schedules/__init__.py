"""Learning-rate schedules, one in each file. See `base.Schedule`."""

from jaxtrain.optim.schedules.base import Schedule
from jaxtrain.optim.schedules.bounded import BoundedDecay
from jaxtrain.optim.schedules.constant import Constant
from jaxtrain.optim.schedules.continued import Continued
from jaxtrain.optim.schedules.continuing import Continuing
from jaxtrain.optim.schedules.cosine import Cosine
from jaxtrain.optim.schedules.infinite import Infinite
from jaxtrain.optim.schedules.inverse_square_root import InverseSquareRoot
from jaxtrain.optim.schedules.linear import Linear
from jaxtrain.optim.schedules.one_cycle import OneCycle
from jaxtrain.optim.schedules.power import Power
from jaxtrain.optim.schedules.refined import Refined
from jaxtrain.optim.schedules.rewarm import Rewarm
from jaxtrain.optim.schedules.warmup_stable_decay import WarmupStableDecay

__all__ = [
    "BoundedDecay",
    "Constant",
    "Continued",
    "Continuing",
    "Cosine",
    "Infinite",
    "InverseSquareRoot",
    "Linear",
    "OneCycle",
    "Power",
    "Refined",
    "Rewarm",
    "Schedule",
    "WarmupStableDecay",
]
