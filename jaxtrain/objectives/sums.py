"""What an objective returns."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Sums(NamedTuple):
    """Sums over the tokens of a batch, to be added over microbatches and devices and divided once by `weight`."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
