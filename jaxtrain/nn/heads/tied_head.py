"""The tied head. Press and Wolf (2016), arXiv:1608.05859."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtrain.nn.heads.base import HeadConfig
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.heads.linear_head import LinearHead


@dataclass(frozen=True, kw_only=True, slots=True)
class TiedHead(HeadConfig):
    """The table of the embedding, with no parameters of its own."""

    paper: ClassVar[str] = "arXiv:1608.05859"

    def untied(self) -> HeadConfig:
        return LinearHead()

    def __call__(self, plain: Head, own: Mapping[str, Any]) -> Head:
        return plain
