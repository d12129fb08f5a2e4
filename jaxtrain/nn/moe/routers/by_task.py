"""Task-level routing: Kudugunta et al. (2021), arXiv:2110.03742, section 3."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routing import Scores, told
from jaxtrain.nn.param import normal
from jaxtrain.ranges import check_at_least_one


@dataclass(frozen=True, kw_only=True, slots=True)
class ByTask(Router):
    """The softmax of a learned vector of the task of a token, so all tokens of a task have the same experts.

    The paper multiplies an embedding of the task with a matrix. A row for each task says the same with less.
    """

    tasks: int
    paper: ClassVar[str] = "arXiv:2110.03742"

    def __post_init__(self):
        check_at_least_one(self, "tasks")

    @property
    def reads_tokens(self) -> bool:
        return False

    @property
    def task_count(self) -> int | None:
        return self.tasks

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        rows = normal(rngs.params(), (self.tasks, experts), (None, None), fan_in=1)
        return {"of_tasks": nnx.Param(rows[...], axes=Axes((None, None), Kind.TABLE, cast=False))}

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        of_BLT = jax.nn.one_hot(told(context.tasks, "tasks", self), self.tasks)
        logits = jnp.einsum("BLT,TE->BLE", of_BLT, own["of_tasks"][...], precision=jax.lax.Precision.HIGHEST)
        return Scores(logits, jax.nn.softmax(logits, axis=-1))
