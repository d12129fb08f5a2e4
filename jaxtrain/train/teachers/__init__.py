"""Where teachers come from, one choice in each file."""

from jaxtrain.train.teachers.ensemble import Ensemble
from jaxtrain.train.teachers.from_run import FromRun
from jaxtrain.train.teachers.stored_logits import StoredLogits

__all__ = ["Ensemble", "FromRun", "StoredLogits"]
