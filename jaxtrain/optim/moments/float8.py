"""FP8 with an expanded range. Xi et al. (2024), arXiv:2410.19313 (COAT)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain_kernels.block_quant import Float8E4M3, Format

from jaxtrain.optim.moments.base import Moments


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8Moments(Moments):
    """Moments in FP8 e4m3; each block has an exponent that expands its range to that of the format."""

    paper: ClassVar[str] = "arXiv:2410.19313"

    @property
    def formats(self) -> tuple[Format, Format]:
        return Float8E4M3(), Float8E4M3()
