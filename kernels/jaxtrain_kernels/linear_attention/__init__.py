"""Linear attention: a decaying sum of outer products of keys and values, read by queries."""

from jaxtrain_kernels.linear_attention.api import IMPLEMENTATIONS, linear_attention, recurrent_step

__all__ = ["IMPLEMENTATIONS", "linear_attention", "recurrent_step"]
