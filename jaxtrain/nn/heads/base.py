"""The base class of heads' configurations."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flax import nnx

from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.technique import Technique


class HeadConfig(Technique):
    """A frozen dataclass that makes logits of the hidden states behind the final norm.

    A head multiplies with a `linear` of its own, or without one with the table of the embedding: it is tied. A head
    with more parameters builds them in `build`.
    """

    __slots__ = ()

    @property
    def linear(self) -> LinearConfig | None:
        return None

    @property
    def tied(self) -> bool:
        return self.linear is None

    def untied(self) -> "HeadConfig":
        """Return the head with a linear of its own."""
        return replace(self, linear=Dense())

    def build(self, d_model: int, rows: int, *, norm: NormConfig, rngs: nnx.Rngs) -> dict[str, Any]:
        """Return the modules and variables that the model has beside the linear, by their names in it.

        `rows` is the number of logits; some of the last may belong to no word.
        """
        return {}

    @abstractmethod
    def __call__(self, plain: Head, own: Mapping[str, Any]) -> Head:
        """Return the head, from the one that only multiplies; `own` is what `build` made."""
