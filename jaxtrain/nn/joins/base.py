"""The base class of joins: how a block's two layers read the residual stream and add to it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.technique import Technique


def unchanged(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    return x


@runtime_checkable
class Then(Protocol):
    """What is done to the output of a layer."""

    def __call__(self, x: Float[Array, "B L D"], /) -> Float[Array, "B L D"]: ...


@runtime_checkable
class Branch(Protocol):
    """A layer of a block as a function of what it reads. It returns `then` of the layer's output, with dropout."""

    def __call__(self, x: Float[Array, "B L D"], /, then: Then = unchanged) -> Float[Array, "B L D"]: ...


class Join(Technique):
    """A frozen dataclass that joins the mixer and the feed-forward layer of a block to the residual stream.

    `layers` names those of the two that the block has, and `norms` its norms. A join with other parameters builds them
    in `build`. With `normalises_stream` the stream behind the block is normalised, so a model that ends with it has no
    final norm.
    """

    __slots__ = ()
    layers: ClassVar[tuple[str, ...]] = ("mixer", "mlp")
    norms: ClassVar[tuple[str, ...]]
    normalises_stream: ClassVar[bool] = False

    def build(self, d_model: int, norm: NormConfig) -> dict[str, nnx.Module]:
        """Return the modules that the block has beside its layers, by their names in it."""
        return {name: norm.build(d_model) for name in self.norms}

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        """Return the stream behind the block. It calls each of its layers once; `own` is what `build` made."""
