"""The 8-bit dynamic map. Dettmers et al. (2022), arXiv:2110.02861."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain_kernels.block_quant import DynamicMap, Format

from jaxtrain.optim.moments.base import Moments


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicMoments(Moments):
    """Moments in the 8-bit dynamic map, the second without a sign."""

    paper: ClassVar[str] = "arXiv:2110.02861"

    @property
    def formats(self) -> tuple[Format, Format]:
        return DynamicMap(), DynamicMap(signed=False)
