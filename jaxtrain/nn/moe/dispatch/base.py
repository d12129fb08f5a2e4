"""The base class of dispatches: they bring tokens to their experts, and add up what those return."""

from abc import abstractmethod
from typing import ClassVar

from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from jaxtrain.nn.moe.dispatch.region import Load
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.technique import Technique


class Dispatch(Technique):
    """A frozen dataclass that computes the weighed sum of each token's experts.

    All ways read the same arrays, so one may be changed for another at any step.
    """

    __slots__ = ()
    drops: ClassVar[bool] = False  # whether tokens of a row compete, so that an expert may leave some out

    def kept(self, routing: Routing) -> Float[Array, "B L E"]:
        """Return 1 for the chosen experts that do compute the token: all of them, where none is dropped."""
        return routing.chosen

    def check_mesh(self, mesh: AbstractMesh) -> None:
        """Raise ValueError where it cannot bring tokens to experts over the axes of the mesh."""

    def sent(self, load: Load) -> int:
        """Return how many values a device sends in the forward pass of a layer. The backward pass sends as many.

        Raises:
            NotImplementedError: the class does not say so.
        """
        raise NotImplementedError(f"{self!r} has no method sent, so Auto cannot weigh it: take others in Auto.ways")

    def remark(self, load: Load, value_bytes: int) -> str | None:
        """Return what a user should know before a run of a layer with this load, or None."""
        return None

    @abstractmethod
    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        """Return the sum over the experts of each token, weighed, in the dtype of `x`."""
