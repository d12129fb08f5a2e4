"""Chats and instructions: rows of messages, written by a template, with the loss on the answers alone."""

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from jaxtrain.data.chat.messages import chat_of
from jaxtrain.data.chat.template import ChatTemplate
from jaxtrain.data.chat.tokens import Piece, encode_chats
from jaxtrain.data.chat.turns import Rendered, rendered
from jaxtrain.data.sources.base import Document, Part, Record, Records, Source, Tokenised
from jaxtrain.data.sources.reading import Unusable
from jaxtrain.data.tokenizers import Tokenizer
from jaxtrain.paths import FilePath

_FORMAT = 2  # of the tokens that are made of a chat
_CHATS_A_READ = 256


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chats(Source):
    """Rows with `messages`, or with `prompt` and `completion`, as the Jinja file `template` writes them.

    The template may also be a tokenizer_config.json that has one. `bos_token` is what it writes under that name; by
    default that of the JSON file, or else of the tokenizer. `date` is the day that `strftime_now` tells. A chat is a
    document as the template writes it: no token is put before or behind it.
    """

    rows: Records
    template: FilePath
    bos_token: str | None = None
    date: str | None = None
    divisible: ClassVar[bool] = False
    paper: ClassVar[str] = "huggingface.co/docs/transformers/chat_templating"

    def __post_init__(self):
        if self.date is not None:
            _day(self.date)

    def check(self) -> None:
        self.rows.check()

    def documents(self) -> Iterator[Document]:
        """Yield the texts of the messages alone, from which a tokenizer can be trained."""
        for record in self.rows.records():
            with _at(record):
                texts = [message.get("content") for message in chat_of(record.fields).messages]
            yield Document(record.key, "\n".join(text for text in texts if isinstance(text, str)))

    def tokenised(self, tokenizer: Tokenizer) -> Iterator[Tokenised]:
        template = self.template_for(tokenizer)
        stop_token = template.stop_token
        for records in itertools.batched(self.rows.records(), _CHATS_A_READ):
            chats = [self._rendered(record, template, stop_token) for record in records]
            for record, pieces in zip(records, _encoded(records, chats, tokenizer), strict=True):
                parts = tuple(Part(piece.text, piece.weight) for piece in pieces)
                yield Tokenised(Document(record.key, parts), [piece.ids for piece in pieces])

    def template_for(self, tokenizer: Tokenizer, *, today: datetime.date | None = None) -> ChatTemplate:
        """Return the template, which writes the special tokens of a tokenizer, and `today` unless `date` is set."""
        date = today if self.date is None else _day(self.date)
        return ChatTemplate(self.template, tokenizer, bos_token=self.bos_token, date=date)

    def expected_documents(self) -> int | None:
        return self.rows.expected_documents()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(Path(self.template).read_bytes()).hexdigest()
        rows = f"{type(self.rows).__qualname__} {self.rows.fingerprint()}"
        return f"chats {_FORMAT} {digest} {self.bos_token!r} {self.date!r}\n{rows}"

    def _rendered(self, record: Record, template: ChatTemplate, stop_token: str) -> Rendered:
        with _at(record):
            return rendered(chat_of(record.fields), template, stop_token)


def _encoded(records: Sequence[Record], chats: Sequence[Rendered], tokenizer: Tokenizer) -> list[list[Piece]]:
    try:
        return encode_chats(chats, tokenizer)
    except ValueError:
        for record, chat in zip(records, chats, strict=True):
            with _at(record):
                encode_chats([chat], tokenizer)
        raise


@contextlib.contextmanager
def _at(record: Record) -> Iterator[None]:
    """Name the place of a record in the errors about it."""
    try:
        yield
    except ValueError as e:
        raise Unusable(f"{record.place} is no chat to learn from: {e}") from e


def _day(date: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as e:
        raise ValueError(f"{date=} must be a day such as '2024-07-26'.") from e
