"""How often a token passes through a block, one way in each file."""

from jaxtrain.nn.depth.base import Depth, Layers
from jaxtrain.nn.depth.expert_choice_recursion import ExpertChoiceRecursion
from jaxtrain.nn.depth.mixture_of_depths import MixtureOfDepths
from jaxtrain.nn.depth.token_choice_recursion import TokenChoiceRecursion

__all__ = ["Depth", "ExpertChoiceRecursion", "Layers", "MixtureOfDepths", "TokenChoiceRecursion"]
