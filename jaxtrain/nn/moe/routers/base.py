"""The base class of routers: they score the experts for each token."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import Scores, in_float32
from jaxtrain.nn.param import normal
from jaxtrain.technique import Technique

Own = Mapping[str, Any]  # what a router built, by the names


class Router(Technique):
    """A frozen dataclass that scores the experts for each token. All its arithmetic is in float32.

    A router with other parameters than one matrix builds them in `build`.
    """

    __slots__ = ()

    @property
    def reads_tokens(self) -> bool:
        """Whether the scores of two tokens of one task may differ."""
        return True

    @property
    def task_count(self) -> int | None:
        """The number of tasks that it tells apart; None where it reads no task."""
        return None

    @property
    def takes_bias(self) -> bool:
        """Whether the biases of balances may have a part in the choice."""
        return True

    def check(self, experts: int, top_k: int) -> None:
        """Raise ValueError where it cannot score so many experts, or so many cannot be chosen by it."""

    def check_vocab(self, vocab_size: int) -> None:
        """Raise ValueError where it cannot have all tokens of a vocabulary."""

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """Return the variables of the router, by their names in the mixture."""
        return {"router": matrix(d_model, experts, rngs)}

    @abstractmethod
    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        """Return the scores; `own` is what `build` made."""

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        """Return losses of its own by name, as those of a balance."""
        return {}

    def balanced(self, own: Own) -> Float[Array, ""] | float:
        """Return what the losses of balances are multiplied by."""
        return 1.0

    def update(self, own: Own) -> None:
        """Replace the router's buffers, once an optimizer step."""


def matrix(d_model: int, outputs: int, rngs: nnx.Rngs) -> nnx.Param:
    """Return a matrix that keeps float32 where it is used."""
    value = normal(rngs.params(), (d_model, outputs), ("embed", None), fan_in=d_model)
    return nnx.Param(value[...], axes=Axes(("embed", None), Kind.MATRIX, cast=False))


def linear_logits(x: Float[Array, "B L D"], own: Own) -> Float[Array, "B L E"]:
    """Return `x` times the router's matrix, in float32."""
    return in_float32(x, own["router"][...])
