"""The delta rule: a linear-attention state that replaces what a key held rather than adding to it."""

from jaxtrain_kernels.delta_rule.api import IMPLEMENTATIONS, delta_rule, recurrent_step

__all__ = ["IMPLEMENTATIONS", "delta_rule", "recurrent_step"]
