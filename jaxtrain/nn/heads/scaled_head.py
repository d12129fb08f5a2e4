"""Scaled logits: Cohere's `logit_scale`, and one over Granite's `logits_scaling`. Yang et al. (2022), arXiv:2203.03466.

muP has such a multiplier of the output, whose rule by width is in its appendix B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtrain.nn.heads.base import HeadConfig
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledHead(HeadConfig):
    """scale * logits. The head is tied where `linear` is None."""

    scale: float
    linear: LinearConfig | None = None
    paper: ClassVar[str] = "arXiv:2203.03466"

    def __post_init__(self):
        check_positive(self, "scale")

    def __call__(self, plain: Head, own: Mapping[str, Any]) -> Head:
        return plain._replace(scale=self.scale)
