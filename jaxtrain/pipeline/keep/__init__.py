"""What a pipeline keeps of a microbatch between F and B, one way a file."""

from jaxtrain.pipeline.keep.base import Keep
from jaxtrain.pipeline.keep.chunk_input import ChunkInput
from jaxtrain.pipeline.keep.layer_values import LayerValues

__all__ = ["ChunkInput", "Keep", "LayerValues"]
