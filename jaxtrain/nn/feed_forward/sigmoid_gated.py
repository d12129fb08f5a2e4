"""A feed-forward layer behind a gate: the shared expert of Qwen 2 MoE (2024), arXiv:2407.10671, section 2.2.2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from flax import nnx
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext
from jaxtrain.nn.param import normal


@dataclass(frozen=True, kw_only=True, slots=True)
class SigmoidGatedConfig(FeedForwardConfig):
    """sigmoid(x gate) * layer(x), with one number a token."""

    layer: FeedForwardConfig
    paper: ClassVar[str] = "arXiv:2407.10671"

    @property
    def task_count(self) -> int | None:
        return self.layer.task_count

    @property
    def competition(self) -> str | None:
        return self.layer.competition

    def check_vocab(self, vocab_size: int) -> None:
        self.layer.check_vocab(vocab_size)

    def check_decoding(self) -> None:
        self.layer.check_decoding()

    def check_alone(self) -> None:
        self.layer.check_alone()

    def check_mesh(self, mesh: AbstractMesh) -> None:
        self.layer.check_mesh(mesh)

    def remark(self, shape: tuple[int, int, int], mesh: AbstractMesh, value_bytes: int) -> str | None:
        return self.layer.remark(shape, mesh, value_bytes)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "SigmoidGated":
        return SigmoidGated(self, d_model, rngs=rngs)


class SigmoidGated(Layer):
    def __init__(self, config: SigmoidGatedConfig, d_model: int, *, rngs: nnx.Rngs):
        self.gate = normal(rngs.params(), (d_model, 1), ("embed", None), fan_in=d_model)
        self.layer = config.layer.build(d_model, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        out = self.layer(x, context)
        return out._replace(y=jax.nn.sigmoid(x @ self.gate[...]) * out.y)

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        self.layer.update_buffers(counts)

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        return self.layer.report(counts)
