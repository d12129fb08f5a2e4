"""Softmax cross-entropy from hidden states and a head, without the logits."""

from jaxtrain_kernels.cross_entropy.api import CrossEntropy, cross_entropy
from jaxtrain_kernels.cross_entropy.logits import logits_of, project

__all__ = ["CrossEntropy", "cross_entropy", "logits_of", "project"]
