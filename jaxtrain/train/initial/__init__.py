"""Where the weights of a new run come from, one choice in each file."""

from jaxtrain.train.initial.base import Initial, initial_arrays
from jaxtrain.train.initial.from_hugging_face import FromHuggingFace
from jaxtrain.train.initial.from_run import FromRun
from jaxtrain.train.initial.random import Random
from jaxtrain.train.initial.upcycled import Upcycled

__all__ = ["FromHuggingFace", "FromRun", "Initial", "Random", "Upcycled", "initial_arrays"]
