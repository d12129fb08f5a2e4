"""Log-decays of recurrent mixers."""

from jaxtrain.nn.mixers.decay.base import DecayConfig, ScalarDecayConfig
from jaxtrain.nn.mixers.decay.kinds import ChannelDecay, FixedDecay, NoDecay, StepDecay

__all__ = ["ChannelDecay", "DecayConfig", "FixedDecay", "NoDecay", "ScalarDecayConfig", "StepDecay"]
