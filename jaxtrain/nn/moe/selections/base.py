"""The base class of selections: they choose the experts of each token."""

from abc import abstractmethod

from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.technique import Technique


class Selection(Technique):
    """A frozen dataclass that chooses experts for tokens, `top_k` for a token in the mean.

    Tokens compete with those of their own row alone, so the choice depends neither on mesh nor on microbatches.
    """

    __slots__ = ()

    @property
    def causal(self) -> bool:
        """Whether the choice for a token depends on no later token."""
        return True

    @property
    def task_count(self) -> int | None:
        """The number of tasks that it tells apart; None where it reads no task."""
        return None

    @property
    def reads_scores(self) -> bool:
        """Whether scores have a part in the choice."""
        return True

    @property
    def takes_bias(self) -> bool:
        """Whether the loads follow from a bias of each expert, so that balances have something to do."""
        return self.reads_scores

    def check(self, experts: int, top_k: int) -> None:
        """Raise ValueError where the numbers do not fit."""

    def most(self, experts: int, top_k: int) -> int:
        """Return the greatest number of experts that a token may have."""
        return top_k

    @abstractmethod
    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        """Return 1 for the experts of a token and 0 for the others. No gradient flows through the choice."""
