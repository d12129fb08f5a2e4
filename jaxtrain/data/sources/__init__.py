"""Where text comes from. A new source is a file here: a frozen dataclass that is a `Source`."""

from jaxtrain.data.sources.array_record import ArrayRecord
from jaxtrain.data.sources.base import Document, Part, Source
from jaxtrain.data.sources.chats import Chats
from jaxtrain.data.sources.domain import Domain
from jaxtrain.data.sources.hugging_face_folder import HuggingFaceFolder
from jaxtrain.data.sources.hugging_face_hub import HuggingFaceHub
from jaxtrain.data.sources.json_lines import JsonLines
from jaxtrain.data.sources.parquet import Parquet
from jaxtrain.data.sources.standard_library import StandardLibrary
from jaxtrain.data.sources.text_files import TextFiles

__all__ = [
    "ArrayRecord",
    "Chats",
    "Document",
    "Domain",
    "HuggingFaceFolder",
    "HuggingFaceHub",
    "JsonLines",
    "Parquet",
    "Part",
    "Source",
    "StandardLibrary",
    "TextFiles",
]
