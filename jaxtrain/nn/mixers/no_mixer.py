"""No mixer: for blocks that are a feed-forward layer alone. Zhou et al. (2023, Brainformers), arXiv:2306.00008."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.mixers.base import Mixer, MixerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class NoMixer(MixerConfig):
    """The block has no mixer. Its join is `FeedForwardAlone`."""

    heads: ClassVar[int] = 0  # type: ignore[misc]  # not a key: any number of devices divides it
    absent: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:2306.00008"

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Nothing":
        return Nothing()

    def check_gaps(self) -> None:
        """There is nothing to mix."""

    def mixing_flops(self, length: int) -> float:
        return 0.0


class Nothing(Mixer):
    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> tuple[()]:
        return ()

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: Any = None) -> Out:
        raise AssertionError("a join calls no layer that is absent")
