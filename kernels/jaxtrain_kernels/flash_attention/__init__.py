"""Attention in memory linear in the length."""

from jaxtrain_kernels.flash_attention.api import (
    IMPLEMENTATIONS,
    Gradients,
    combine,
    flash_attention,
    flash_attention_backward,
)
from jaxtrain_kernels.flash_attention.problem import Blocks

__all__ = ["IMPLEMENTATIONS", "Blocks", "Gradients", "combine", "flash_attention", "flash_attention_backward"]
