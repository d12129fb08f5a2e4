"""How tokens become vectors, one way in each file."""

from jaxtrain.nn.embeddings.base import EmbeddingConfig
from jaxtrain.nn.embeddings.learned_positions import LearnedPositions
from jaxtrain.nn.embeddings.normalised_embedding import NormalisedEmbedding
from jaxtrain.nn.embeddings.scaled_embedding import ScaledEmbedding
from jaxtrain.nn.embeddings.token_embedding import TokenEmbedding

__all__ = ["EmbeddingConfig", "LearnedPositions", "NormalisedEmbedding", "ScaledEmbedding", "TokenEmbedding"]
