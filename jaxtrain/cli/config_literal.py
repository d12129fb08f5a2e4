"""Values as a text writes them, before they are values: what Python would round, warn of or choke on is refused.

Python reads `1e999` as infinity and `3e-3000` as 0 without a word, and its parser ends in other errors than syntax
errors where a text is nested deeply, holds a zero byte or half of a surrogate pair.
"""

import ast
import contextlib
import io
import math
import sys
import tokenize
import warnings
from collections.abc import Iterator

_SHOWN = 60  # characters of a text in an error
_DEEPEST = 100  # parts of an expression within each other


@contextlib.contextmanager
def bounded(what: str = "") -> Iterator[None]:
    """Raise ValueError for what is nested more deeply than Python goes."""
    try:
        yield
    except (RecursionError, MemoryError):  # the second is the parser's
        raise ValueError(f"{what} is nested too deeply".lstrip()) from None


@contextlib.contextmanager
def parsing(what: str = "") -> Iterator[None]:
    """Also raise SyntaxError for an escape that is none: Python warns of it, and takes it for two characters."""
    with bounded(what), warnings.catch_warnings():
        warnings.simplefilter("error", SyntaxWarning)
        yield


def expression(text: str) -> ast.expr:
    """The syntax of a value. Raises SyntaxError where the text is none, ValueError for one that cannot be meant."""
    check_text(text)
    try:
        with parsing():
            parsed = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        if all(token.type not in (tokenize.NAME, tokenize.STRING, tokenize.ERRORTOKEN) for token in tokens(text)):
            check_numbers(text)  # Python has a limit of its own for the digits of whole numbers
        raise
    check_numbers(text)
    if _depth(parsed) > _DEEPEST:
        raise ValueError("is nested too deeply")
    return parsed


def _depth(parsed: ast.expr) -> int:
    level, depth = [parsed], 0
    while level:
        level, depth = [child for node in level for child in ast.iter_child_nodes(node)], depth + 1
    return depth


def check_text(text: str, what: str = "") -> None:
    """Raise ValueError for characters that no configuration can be written with."""
    if "\0" in text:
        raise ValueError(f"{what} holds a zero byte".lstrip())
    check_encodable(text)


def check_encodable(text: str) -> None:
    """Raise ValueError for half of a surrogate pair, which no file can hold. Bytes that are no UTF-8 become such."""
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
    """The tokens of a text, up to the first that is none: to say what is wrong there is the parser's part."""
    with contextlib.suppress(SyntaxError, tokenize.TokenError):
        yield from tokenize.generate_tokens(io.StringIO(text).readline)


def check_number(written: str) -> None:
    """Raise ValueError unless a number without its sign is 0, or where floats have all their digits."""
    digits = written.lower().replace("_", "").removesuffix("j")
    if digits[:2] in ("0x", "0o", "0b"):
        holds = int(digits, 0) < 2**1023
    else:
        is_zero = not digits.partition("e")[0].strip("0.")
        holds = is_zero or sys.float_info.min <= float(digits) < math.inf
    if not holds:
        raise ValueError(f"no float holds {shorten(written)}: write 0, or a number between 2.3e-308 and 1.7e308")


def number(text: str) -> float:
    """The number that an argument says, finite and such as a float holds. Raises ValueError."""
    value = float(text)
    check_number(text.strip().lstrip("+-"))
    return value


def shorten(text: str) -> str:
    """The text as any terminal takes it, or where it is long its beginning."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
