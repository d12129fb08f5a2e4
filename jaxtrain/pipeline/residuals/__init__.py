"""What a pipeline stores of a microbatch between F and B, one policy a file."""

from jaxtrain.pipeline.residuals.base import Residuals
from jaxtrain.pipeline.residuals.chunk_input import ChunkInput
from jaxtrain.pipeline.residuals.repeat_residuals import RepeatResiduals

__all__ = ["ChunkInput", "RepeatResiduals", "Residuals"]
