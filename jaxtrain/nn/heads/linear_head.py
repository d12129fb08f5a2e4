"""The plain head: a linear of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtrain.nn.heads.base import HeadConfig
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearHead(HeadConfig):
    """A linear of its own, with a row for each word."""

    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "common practice"

    def __call__(self, plain: Head, own: Mapping[str, Any]) -> Head:
        return plain
