"""Ways to merge models of one architecture, one choice in each file."""

from jaxtrain.surgery.merging.assembly import Assembly
from jaxtrain.surgery.merging.base import Merge, merged

__all__ = ["Assembly", "Merge", "merged"]
