"""Damage: to a text a character, a word or a line at a time, to bytes as disks, transfers and editors do it."""

import re
from random import Random
from typing import NamedTuple

WORDS = (  # in place of a value
    "1e999", "-1e999", "3e-3000", "1e-320", "9" * 400, "9" * 5000, "1" + "0" * 400 + ".5", "0x" + "f" * 300, "1_0",
    "nan", "inf", "-inf", "-", "--1", "1j", "1.", ".5", "5.e", "007", "True", "None", "...", "@", "@()", "@x", "@x()",
    "@.()", "@a/b/c()", "%", "%x", "%%", "'", '"', "'''", "''", "'\\ud800'", "'\\x00'", "'\\", "b'x'", "f'{1}'", "\0",
    "(" * 60, "[" * 300, "(" * 5000, "-" * 4000, "[]", "()", "{}", "{[]: 1}", "{1: 2}", "{1}", "[1, [2]]", "(,)",
    "lambda: 0", "1 if 1 else 2", "[x for x in ()]", "*", "**", "=", ":", "#", "\\", ";", "é", "Σ", "\ud800", "\ufeff",
    "\x85", "\u2028", "@config.TrainConfig()", "@os.getcwd()", "os", "__import__('os')", "٣", "1e٣", "½", "²",
)  # fmt: skip
CHARACTERS = ("\0", "\t", "\r", "\n", " ", "'", '"', "(", ")", "[", "]", "{", "}", "@", "%", "=", ":", ".", ",", "/")
CHARACTERS += ("\\", "#", "-", "_", "0", "9", "e", "é", "\ud800", "\ufeff", "\x0c", "\u2028", "²", "٣")


class Damaged[T](NamedTuple):
    what: str
    content: T


def text(random: Random, valid: str) -> Damaged[str]:
    """A text with one thing wrong."""
    at = random.randrange(len(valid))
    lines = valid.splitlines(keepends=True)
    line = random.randrange(len(lines))
    match random.choice(("drop", "insert", "twice", "line away", "line twice", "lines swapped", "cut", "word")):
        case "drop":
            return Damaged(f"without character {at}", valid[:at] + valid[at + 1 :])
        case "insert":
            new = random.choice(CHARACTERS)
            return Damaged(f"{new!r} at {at}", valid[:at] + new + valid[at:])
        case "twice":
            return Damaged(f"character {at} twice", valid[: at + 1] + valid[at:])
        case "line away":
            return Damaged(f"without line {line + 1}", "".join(lines[:line] + lines[line + 1 :]))
        case "line twice":
            return Damaged(f"line {line + 1} twice", "".join(lines[: line + 1] + lines[line:]))
        case "lines swapped":
            other = random.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            return Damaged(f"lines {line + 1} and {other + 1} swapped", "".join(lines))
        case "cut":
            return Damaged(f"cut at {at}", valid[:at])
    return word(random, valid)


def word(random: Random, valid: str) -> Damaged[str]:
    """A text with one of its words another."""
    words = [found.span() for found in re.finditer(r"[^\s=,()\[\]{}:\"]+", valid)]
    start, end = random.choice(words)
    new = random.choice(WORDS)
    shown = new if len(new) < 30 else f"{new[:10]}... ({len(new)} characters)"
    return Damaged(f"{shown!r} for {valid[start:end]!r} at {start}", valid[:start] + new + valid[end:])


def data(random: Random, valid: bytes) -> Damaged[bytes]:
    """Bytes with one thing wrong."""
    at = random.randrange(len(valid))
    end = min(at + random.choice((1, 4, 16, 512)), len(valid))
    match random.choice(("flip", "set", "zero", "drop", "twice", "insert", "cut", "cut", "empty", "more")):
        case "flip":
            bit = random.randrange(8)
            return Damaged(
                f"bit {bit} of byte {at} flipped", valid[:at] + bytes([valid[at] ^ 1 << bit]) + valid[at + 1 :]
            )
        case "set":
            new = random.choice((0, 1, 0x7F, 0x80, 0xED, 0xFF))
            return Damaged(f"byte {at} is {new}", valid[:at] + bytes([new]) + valid[at + 1 :])
        case "zero":
            return Damaged(f"bytes {at} to {end} are 0", valid[:at] + bytes(end - at) + valid[end:])
        case "drop":
            return Damaged(f"without bytes {at} to {end}", valid[:at] + valid[end:])
        case "twice":
            return Damaged(f"bytes {at} to {end} twice", valid[:end] + valid[at:])
        case "insert":
            return Damaged(f"random bytes at {at}", valid[:at] + random.randbytes(end - at) + valid[at:])
        case "cut":
            return Damaged(f"cut at {at} of {len(valid)}", valid[:at])
        case "empty":
            return Damaged("empty", b"")
    return Damaged("random bytes behind it", valid + random.randbytes(end - at))


def number(random: Random, valid: str, others: tuple[str, ...]) -> Damaged[str]:
    """A text with one of its numbers another."""
    start, end = random.choice([found.span() for found in re.finditer(r"\d+", valid)])
    new = random.choice(others)
    return Damaged(f"{new[:20]!r} for {valid[start:end]!r} at {start}", valid[:start] + new + valid[end:])
