"""The tokens of chats, with the weight of the loss on each.

A chat is encoded whole, as it is when a model that trained on it is used. Where the prompt of an answer, encoded alone
as in generation, has other tokens, the text is cut there: a token never lies on both sides. That is so for answers that
begin with spaces or empty lines, which many tokenizers join with what stands before.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxtrain.data.chat.turns import Rendered
from jaxtrain.data.tokenizers.base import Placed, Tokenizer


class Piece(NamedTuple):
    """Tokens in a row whose loss has one weight, and the text that they stand for."""

    text: str
    ids: np.ndarray
    weight: float


def encode_chats(chats: Sequence[Rendered], tokenizer: Tokenizer) -> list[list[Piece]]:
    """Return the tokens of each chat, in pieces of one weight.

    Raises:
      ValueError: a text must be cut, and the tokenizer puts something before each part of it.
    """
    wholes = _encode([(chat.text, chat.cuts) for chat in chats], tokenizer)
    prompts = iter(_encode([(c.text[: s.start], c.cuts) for c in chats for s in c.spans], tokenizer))
    cuts = [
        {*chat.cuts, *(span.start for span in chat.spans if not _begins(whole, next(prompts), span.start))}
        for chat, whole in zip(chats, wholes, strict=True)
    ]
    if any(cuts):
        _check_cuts(tokenizer)
        wholes = _encode([(chat.text, places) for chat, places in zip(chats, cuts, strict=True)], tokenizer)
    return [_pieces(chat, whole) for chat, whole in zip(chats, wholes, strict=True)]


def encode_prompt(chat: Rendered, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a chat up to where an answer begins."""
    if chat.cuts:
        _check_cuts(tokenizer)
    return _encode([(chat.text, chat.cuts)], tokenizer)[0].ids.tolist()


def _encode(texts: Sequence[tuple[str, Iterable[int]]], tokenizer: Tokenizer) -> list[Placed]:
    """Return the tokens of texts, each cut at some places."""
    bounds = [[0, *sorted(place for place in cuts if 0 < place < len(text)), len(text)] for text, cuts in texts]
    parts = [
        text[begin:end]
        for (text, _), places in zip(texts, bounds, strict=True)
        for begin, end in zip(places, places[1:], strict=False)
    ]
    encoded = iter(tokenizer.encode_template(parts))
    return [_joined([next(encoded) for _ in places[1:]], places) for places in bounds]


def _joined(parts: list[Placed], begins: list[int]) -> Placed:
    if len(parts) == 1:
        return parts[0]
    moved = [
        Placed(ids, starts + begin, ends + begin) for (ids, starts, ends), begin in zip(parts, begins, strict=False)
    ]
    return Placed(*(np.concatenate(column) for column in zip(*moved, strict=True)))


def _begins(whole: Placed, prompt: Placed, start: int) -> bool:
    """Tell whether the tokens of a prompt are the first of the whole text, and the next one begins behind it."""
    count = int(np.searchsorted(whole.starts, start))
    return np.array_equal(whole.ids[:count], prompt.ids) and (count == 0 or whole.ends[count - 1] <= start)


def _check_cuts(tokenizer: Tokenizer) -> None:
    """Raise ValueError where two texts, encoded one by one, are not what they are together."""
    one = tokenizer.encode("a")
    if tokenizer.decode(np.concatenate([one, one])) != "aa":
        raise ValueError(
            "its text must be cut (an answer shares a token with its prompt, or a message spells a special token), "
            f"and data.tokenizer={tokenizer} puts a space before each part. Reword it, or let the template end its "
            "prompts without a space."
        )


def _pieces(chat: Rendered, whole: Placed) -> list[Piece]:
    weights = np.zeros(len(whole.ids))
    for span in chat.spans:
        weights[np.searchsorted(whole.starts, span.start) : np.searchsorted(whole.starts, span.end)] = span.weight
    begins = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(weights)]
    places = [0, *whole.starts[begins[1:-1]].tolist(), len(chat.text)]
    return [
        Piece(chat.text[places[i] : places[i + 1]], whole.ids[begin:end], float(weights[begin]))
        for i, (begin, end) in enumerate(zip(begins, begins[1:], strict=False))
    ]
