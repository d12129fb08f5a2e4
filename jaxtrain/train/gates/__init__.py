"""How experts that were trained apart share the tokens of a text, one choice in each file."""

from jaxtrain.train.gates.base import Gate
from jaxtrain.train.gates.nearest import Nearest
from jaxtrain.train.gates.posterior import Posterior

__all__ = ["Gate", "Nearest", "Posterior"]
