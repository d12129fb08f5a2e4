"""A soft cap of the logits. Gemma 2 (2024), arXiv:2408.00118, section 2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtrain.nn.heads.base import HeadConfig
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class CappedHead(HeadConfig):
    """cap * tanh(logits / cap). The head is tied where `linear` is None."""

    cap: float
    linear: LinearConfig | None = None
    paper: ClassVar[str] = "arXiv:2408.00118"

    def __post_init__(self):
        check_positive(self, "cap")

    def __call__(self, plain: Head, own: Mapping[str, Any]) -> Head:
        return plain._replace(softcap=self.cap)
