"""Text to ids and back. A new tokenizer is a file here: a frozen dataclass that is a `Tokenizer`."""

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.data.tokenizers.byte import ByteTokenizer
from jaxtrain.data.tokenizers.hugging_face import HuggingFaceTokenizer
from jaxtrain.data.tokenizers.sentence_piece import SentencePiece

__all__ = ["ByteTokenizer", "HuggingFaceTokenizer", "SentencePiece", "Tokenizer"]
