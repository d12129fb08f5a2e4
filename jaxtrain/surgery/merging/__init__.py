"""Ways to merge models of one architecture, one choice in each file."""

from jaxtrain.surgery.merging.assembly import Assembly
from jaxtrain.surgery.merging.base import Merge, merged
from jaxtrain.surgery.merging.combination import Combination, evolved, moving_average
from jaxtrain.surgery.merging.weight_ensemble import WeightEnsemble

__all__ = ["Assembly", "Combination", "Merge", "WeightEnsemble", "evolved", "merged", "moving_average"]
