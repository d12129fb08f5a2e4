"""Systems for mixtures of experts on a fake clock, on the host: what a schedule or a network of peers would take.

All share one clock (`clock.py`): actions at given times, and streams that do one piece of work after another. Costs are
alpha + beta n for n bytes or tokens (`linear.py`).
"""

from jaxtrain.planning.simulators.clock import Clock, Span, Stream, Work, timeline
from jaxtrain.planning.simulators.learning_at_home import LearningAtHome, beam_search
from jaxtrain.planning.simulators.linear import Linear, fit
from jaxtrain.planning.simulators.mixture_layer import MixtureLayer

__all__ = [
    "Clock",
    "LearningAtHome",
    "Linear",
    "MixtureLayer",
    "Span",
    "Stream",
    "Work",
    "beam_search",
    "fit",
    "timeline",
]
