"""Numbers as text: those that a float holds."""

import math
import sys

_SHOWN = 60  # most characters of a text in an error


def check_number(written: str) -> None:
    """Raise ValueError unless a number without its sign is 0 or in the range of normal floats."""
    digits = written.lower().replace("_", "").removesuffix("j")
    if digits[:2] in ("0x", "0o", "0b"):
        holds = int(digits, 0) < 2**1023
    else:
        is_zero = not digits.partition("e")[0].strip("0.")
        holds = is_zero or sys.float_info.min <= float(digits) < math.inf
    if not holds:
        raise ValueError(f"no float holds {shorten(written)}: write 0, or a number between 2.3e-308 and 1.7e308")


def shorten(text: str) -> str:
    """Return the text with halves of surrogate pairs escaped, or only its beginning where it is long."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
