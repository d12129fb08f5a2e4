"""Text to batches: sources, tokenizers, a token store, packing, mixtures, and the grain iterator over batches."""

from jaxtrain.data.bigram import bigram_loss
from jaxtrain.data.config import DataConfig
from jaxtrain.data.loader import batches_of, describe_batch, loader
from jaxtrain.data.packing import BestFit, ConcatenateAndSplit, Packing
from jaxtrain.data.rows import Rows, open_rows, open_stores, stream_of
from jaxtrain.data.sources import (
    ArrayRecord,
    Chats,
    Document,
    Domain,
    HuggingFaceFolder,
    HuggingFaceHub,
    JsonLines,
    Parquet,
    Part,
    Source,
    StandardLibrary,
    TextFiles,
)
from jaxtrain.data.sources.mixture import Mixture, Weighted
from jaxtrain.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SentencePiece, Tokenizer

__all__ = [
    "ArrayRecord",
    "BestFit",
    "ByteTokenizer",
    "Chats",
    "ConcatenateAndSplit",
    "DataConfig",
    "Document",
    "Domain",
    "HuggingFaceFolder",
    "HuggingFaceHub",
    "HuggingFaceTokenizer",
    "JsonLines",
    "Mixture",
    "Packing",
    "Parquet",
    "Part",
    "Rows",
    "SentencePiece",
    "Source",
    "StandardLibrary",
    "TextFiles",
    "Tokenizer",
    "Weighted",
    "batches_of",
    "bigram_loss",
    "describe_batch",
    "loader",
    "open_rows",
    "open_stores",
    "stream_of",
]
