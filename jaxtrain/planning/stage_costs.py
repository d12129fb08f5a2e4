"""The costs of F, B and W of a model's repeats, by their FLOPs, for the simulator and for packing ticks."""

from jaxtrain.models.counts import counts
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import of_stack
from jaxtrain.pipeline.simulator import Costs

LEAST = 1e-3  # of a repeat's forward: what W takes where it has no matrix to do


def repeat_costs(model: DecoderConfig, length: int, *, forward_again: bool = False) -> Costs:
    """Return the costs of one repeat of the pattern at this length, in units of its forward.

    A product with weights costs as much in B and in W as in F. Mixing along the length has no weights: it costs twice
    as much in B and nothing in W. Frozen weights have no W. With `forward_again` a repeat stores no residuals, and B
    also recomputes its forward.
    """
    _, shapes, axes = abstract_model(model)
    numbers = counts(of_stack(shapes, "blocks"), of_stack(axes, "blocks"))
    trained, frozen = (2.0 * n / model.repeats for n in (numbers.multiplying, numbers.frozen_multiplying))
    products = trained + frozen
    mixing = sum(block.mixing_flops(length) for block in model.pattern) / 3
    forward = products + mixing
    return Costs(backward=(products + 2 * mixing) / forward + forward_again, weight=max(trained / forward, LEAST))
