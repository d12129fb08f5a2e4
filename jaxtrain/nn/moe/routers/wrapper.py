"""The base class of routers that change another one: what it reads, or what is chosen by it."""

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routing import Scores


class RouterWrapper(Router):
    """A router around another one. Parameters, losses and buffers are those of that one."""

    __slots__ = ()
    router: Router

    @property
    def reads_tokens(self) -> bool:
        return self.router.reads_tokens

    @property
    def task_count(self) -> int | None:
        return self.router.task_count

    @property
    def takes_bias(self) -> bool:
        return self.router.takes_bias

    def check(self, experts: int, top_k: int) -> None:
        self.router.check(experts, top_k)

    def check_vocab(self, vocab_size: int) -> None:
        self.router.check_vocab(vocab_size)

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        return self.router.build(d_model, experts, rngs=rngs)

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        return self.router.loss(scores, chosen, real, own)

    def balanced(self, own: Own) -> Float[Array, ""] | float:
        return self.router.balanced(own)

    def update(self, own: Own) -> None:
        self.router.update(own)
