"""Packing documents into rows. A new way to pack is a file here: a frozen dataclass that is a `Packing`."""

from jaxtrain.data.packing.base import Packing, Plan
from jaxtrain.data.packing.best_fit import BestFit
from jaxtrain.data.packing.concatenate import ConcatenateAndSplit

__all__ = ["BestFit", "ConcatenateAndSplit", "Packing", "Plan"]
