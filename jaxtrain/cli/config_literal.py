"""Checks of literals in text, before Python evaluates them: numbers that a float cannot hold, deep nesting, bad bytes.

Python reads `1e999` as infinity and `3e-3000` as 0 without a warning. Its parser raises other errors than SyntaxError
for a text that is nested deeply, or holds a zero byte or half of a surrogate pair.
"""

import ast
import contextlib
import io
import tokenize
import warnings
from collections.abc import Iterator

from jaxtrain.record.literal import check_number

_DEEPEST = 100  # most levels of nesting in an expression


@contextlib.contextmanager
def bounded(what: str = "") -> Iterator[None]:
    """Raise ValueError where nesting in the `with` exceeds Python's limits."""
    try:
        yield
    except (RecursionError, MemoryError):  # Python's parser raises MemoryError
        raise ValueError(f"{what} is nested too deeply".lstrip()) from None


@contextlib.contextmanager
def parsing(what: str = "") -> Iterator[None]:
    """As `bounded`, and raise SyntaxError for an invalid escape, which Python warns of and reads as two characters."""
    with bounded(what), warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        yield


def expression(text: str) -> ast.expr:
    """Return the syntax tree of a value.

    Raises:
        SyntaxError: the text is no expression.
        ValueError: it holds a number that no float holds, is nested too deeply, or cannot be written to a file.
    """
    check_text(text)
    try:
        with parsing():
            parsed = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        if all(token.type not in (tokenize.NAME, tokenize.STRING, tokenize.ERRORTOKEN) for token in tokens(text)):
            check_numbers(text)  # Python refuses an integer of more than 4300 digits: say that no float holds it
        raise
    check_numbers(text)
    if _depth(parsed) > _DEEPEST:
        raise ValueError("is nested too deeply")
    return parsed


def _depth(parsed: ast.expr) -> int:
    level: list[ast.AST] = [parsed]
    depth = 0
    while level:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth


def check_text(text: str, what: str = "") -> None:
    """Raise ValueError for a zero byte or half of a surrogate pair, which no configuration file can hold."""
    if "\0" in text:
        raise ValueError(f"{what} holds a zero byte".lstrip())
    check_encodable(text)


def check_encodable(text: str) -> None:
    """Raise ValueError for half of a surrogate pair, which UTF-8 cannot encode.

    Python decodes bytes of the command line that are not UTF-8 to such halves.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds {text[error.start]!r}, which is no character of UTF-8") from None


def check_numbers(text: str) -> None:
    """Raise ValueError for the first number of a text that a float rounds to 0 or to infinity."""
    for token in tokens(text):
        if token.type == tokenize.NUMBER:
            check_number(token.string)


def tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of a text up to the first invalid one, which the parser reports."""
    with contextlib.suppress(SyntaxError, tokenize.TokenError):
        yield from tokenize.generate_tokens(io.StringIO(text).readline)


def number(text: str) -> float:
    """Return the number in an argument. Raises ValueError for one that is not finite or that a float rounds to 0."""
    value = float(text)
    check_number(text.strip().lstrip("+-"))
    return value
