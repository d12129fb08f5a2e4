"""Linear attention: a decaying sum of outer products of keys and values, read by queries."""

from jaxtrain_kernels.linear_attention.api import linear_attention, recurrent_step

__all__ = ["linear_attention", "recurrent_step"]
