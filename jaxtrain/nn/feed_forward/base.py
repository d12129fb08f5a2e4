"""The base class of feed-forward layers' configurations."""

from abc import abstractmethod
from typing import ClassVar

from flax import nnx
from jax.sharding import AbstractMesh

from jaxtrain.nn.layer import Layer
from jaxtrain.technique import Technique


class FeedForwardConfig(Technique):
    """A frozen dataclass that builds a layer that transforms each token by itself.

    The layer is called with `x [batch, length, d_model]` and a `TokenContext`.
    """

    __slots__ = ()
    absent: ClassVar[bool] = False  # the block has no such layer

    @property
    def task_count(self) -> int | None:
        """The number of tasks that it tells apart; None where it reads no task."""
        return None

    @property
    def neurons(self) -> int | None:
        """The number of its hidden neurons; None where it does not say."""
        return None

    @property
    def evaluated_neurons(self) -> int | None:
        """How many of them a token computes in evaluation and generation; by default all."""
        return self.neurons

    @property
    def competition(self) -> str | None:
        """The key by which tokens of a row compete, so that one's result depends on which others there are, or None."""
        return None

    def check_vocab(self, vocab_size: int) -> None:
        """Raise ValueError where it cannot have all tokens of a vocabulary."""

    def check_decoding(self) -> None:
        """Raise ValueError where a token's result depends on later ones, so that nothing can be generated."""

    def check_alone(self) -> None:
        """Raise ValueError where a token's result depends on others of its row, those of other documents among them."""

    def check_mesh(self, mesh: AbstractMesh) -> None:
        """Raise ValueError where the mesh cannot split it as it would have to."""

    def remark(self, shape: tuple[int, int, int], mesh: AbstractMesh, value_bytes: int) -> str | None:
        """Return what a user should know before a run with activations of this shape, of values so large; or None."""
        return None

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> Layer: ...
