"""Ways to merge models of one architecture, one choice in each file."""

from jaxtrain.surgery.merging.assembly import Assembly
from jaxtrain.surgery.merging.base import Merge, merged
from jaxtrain.surgery.merging.combination import Combination, evolved, moving_average

__all__ = ["Assembly", "Combination", "Merge", "evolved", "merged", "moving_average"]
