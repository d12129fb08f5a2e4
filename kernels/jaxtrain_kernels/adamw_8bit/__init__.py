"""One pass of AdamW over a parameter whose moments are kept in eight bits."""

from jaxtrain_kernels.adamw_8bit.api import IMPLEMENTATIONS, adamw_8bit
from jaxtrain_kernels.adamw_8bit.rule import AdamW, AdamWStep

__all__ = ["IMPLEMENTATIONS", "AdamW", "AdamWStep", "adamw_8bit"]
