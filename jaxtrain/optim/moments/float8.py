"""FP8 with an expanded range. Xi et al. (2024), arXiv:2410.19313 (COAT)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain_kernels.block_quant import Float8E4M3, Format

from jaxtrain.optim.moments.base import Moments


@dataclass(frozen=True, kw_only=True, slots=True)
class Float8Moments(Moments):
    """Moments in FP8 e4m3 with the range of each block expanded to that of the format; one exponent a block more."""

    paper: ClassVar[str] = "arXiv:2410.19313"

    @property
    def formats(self) -> tuple[Format, Format]:
        return Float8E4M3(), Float8E4M3()
