"""Dimension legend and the batch that flows from data to objective.

One letter an axis, the same in annotations, einsums and suffixes (`q_BLHK`):

    B batch            L length (queries)   S source length (keys)   D model width
    F feed-forward     H query heads        J key-value heads        K head dim
    G query heads per key-value head        W vocabulary             R repeats of the block pattern
    A microbatches accumulated in a step
    E experts          T tokens of a device N rows of experts    C places of an expert
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Shaped

ParamTree = dict  # nested dicts of arrays: the layout of checkpoints, surgery and optimizers


class ModelState(NamedTuple):
    """The arrays of a model, or the facts about them, in trees that follow its modules.

    `params` are trained. No gradient reaches `frozen`: it has no moments and is replaced by surgery alone. `buffers`
    are replaced without a gradient, by the model, once an optimizer step.
    """

    params: ParamTree
    frozen: ParamTree = {}
    buffers: ParamTree = {}


class Batch(NamedTuple):
    """Packed token sequences. Leaves are numpy on the way in and sharded jax arrays in the step.

    `targets[b, t]` follows `tokens[b, t]` in the same document. `segment_ids` number the documents of a row from 1;
    0 is padding. `positions` restart at 0 in every document. `weights` are those of the loss on each target: 0 where
    none is taken, such as on padding, and else 1 if the source does not say otherwise. `tasks` are the numbers that a
    mixture of sources gives each of them; 0 where it gives none. `hints` are what an objective prepared for every token
    of the whole batch, such as what a teacher says of it.
    """

    tokens: Int[Array, "B L"]
    targets: Int[Array, "B L"]
    weights: Float[Array, "B L"]
    segment_ids: Int[Array, "B L"]
    positions: Int[Array, "B L"]
    tasks: Int[Array, "B L"] | None = None
    hints: Mapping[str, Shaped[Array, "B L ..."]] = {}
