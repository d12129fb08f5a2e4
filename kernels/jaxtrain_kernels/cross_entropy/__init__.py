"""Softmax cross-entropy from hidden states and a head, without the logits."""

from jaxtrain_kernels.cross_entropy.api import LossSums, cross_entropy

__all__ = ["LossSums", "cross_entropy"]
