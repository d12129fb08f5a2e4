"""The delta rule: linear attention whose state replaces the value that a key held, instead of adding to it."""

from jaxtrain_kernels.delta_rule.api import IMPLEMENTATIONS, delta_rule, recurrent_step

__all__ = ["IMPLEMENTATIONS", "delta_rule", "recurrent_step"]
