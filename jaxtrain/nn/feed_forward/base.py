"""The base class of feed-forward layers' configurations."""

from abc import abstractmethod

from flax import nnx

from jaxtrain.nn.layer import Layer
from jaxtrain.technique import Technique


class FeedForwardConfig(Technique):
    """A frozen dataclass that builds a layer that transforms each token by itself.

    The layer is called with `x [batch, length, d_model]` and a `TokenContext`.
    """

    __slots__ = ()

    @property
    def task_count(self) -> int | None:
        """The number of tasks that it tells apart; None where it reads no task."""
        return None

    def check_vocab(self, vocab_size: int) -> None:
        """Raise ValueError where it cannot have all tokens of a vocabulary."""

    def check_decoding(self) -> None:
        """Raise ValueError where a token's result depends on later ones, so that nothing can be generated."""

    def check_alone(self) -> None:
        """Raise ValueError where a token's result depends on others of its row, those of other documents among them."""

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> Layer: ...
