"""A choice between the linears of a layer, by their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side
from jaxtrain.nn.linear.dense import Dense


@dataclass(frozen=True, kw_only=True, slots=True)
class Some(LinearConfig):
    """`linear` for those linears of a layer that have one of the `names`, `others` for the rest."""

    names: tuple[str, ...]
    linear: LinearConfig
    others: LinearConfig = Dense()
    paper: ClassVar[str] = "common practice"

    def __post_init__(self):
        if not self.names:
            raise ValueError("names=(): name at least one linear of the layer, such as 'query'")

    def of_layer(self, *names: str) -> Mapping[str, LinearConfig]:
        if unknown := [name for name in self.names if name not in names]:
            raise ValueError(f"names={self.names}: the layer has no linear {unknown[0]!r}; it has {', '.join(names)}")
        chosen = self.linear.of_layer(*names), self.others.of_layer(*names)
        return {name: chosen[name not in self.names][name] for name in names}

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> Linear:
        raise ValueError(f"{self!r}: this linear has no name to be chosen by; give it one kind of linear")

    def check_head(self) -> None:
        raise ValueError(f"head.linear={self!r}: a head has one linear; give it one kind")
