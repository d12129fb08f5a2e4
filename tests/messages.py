"""What errors say. A test names the kind of an error and its facts; the wording lies in golden/messages.txt.

    with refused(ValueError, "model.d_model=63", 64):
        load(file)
    check(refusal(capsys, "train", file), "model.d_model=63", 64)

A fact is a key, a value, a file or a line that the text must hold as a whole word: `heads=4` is neither in `kv_heads=4`
nor in `heads=48`, and 4 not in `-4`, `.4` or the name of the temporary folder. Then the whole text is compared with the
one recorded under the id of the test. After a change of wording,

    python -m pytest -n 0 --write-messages [FILES]

records what the tests that ran now say; read the difference before you commit it. Texts of tests that no longer exist
are removed, and those of tests that did not run stay.

The golden holds nothing that differs between runs, machines or versions of a library. Temporary folders, the checkout
and what the operating system says become `<tmp>`, `<checkout>` and `<ENOSPC>`. `varies={"<json>": "line [0-9]+"}` names
another such part, by a regular expression that must match; `recorded=False` leaves out a text that is no wording of
ours.
"""

import ast
import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import checked
import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "messages.txt"
HEAD = "# What errors say, by test. Written by `python -m pytest -n 0 --write-messages`, see tests/messages.py.\n"

Entry = tuple[str, int]  # a test, and which of its texts


@dataclasses.dataclass
class Session:
    """What this process checks: set up and written by conftest.py."""

    writing: bool = False
    temporary: Path = Path("/nowhere")
    collected: set[str] = dataclasses.field(default_factory=set)  # the tests of files of which all were collected
    texts: dict[Entry, str] = dataclasses.field(default_factory=dict)  # to be written
    last: Entry = ("", 0)


session = Session()
CLASSES = {"<classes>": r"(?<=must be )\w+( \| \w+)+"}  # of a base class: also those that other tests define


@contextlib.contextmanager
def refused(
    kind: type[BaseException] | tuple[type[BaseException], ...],
    *facts: object,
    recorded: bool = True,
    varies: Mapping[str, str] | None = None,
) -> Iterator[pytest.ExceptionInfo]:
    """Expect an exception of a kind whose text holds the facts and is the recorded one."""
    with checked.off(), pytest.raises(kind) as error:
        yield error
    check(str(error.value), *facts, recorded=recorded, varies=varies)


def check(
    text: str,
    *facts: object,
    recorded: bool = True,
    varies: Mapping[str, str] | None = None,
) -> None:
    """Expect a text to hold the facts and to be the recorded one."""
    __tracebackhide__ = True
    for fact in facts:
        assert holds(_without_places(text), _without_places(str(fact))), f"{str(fact)!r} is missing in: {text}"
    if recorded:
        _compare(stable(text, varies))


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that must be refused, and return the one line that it ends with."""
    from jaxtrain.cli.main import main

    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxtrain: error: ") and error.endswith("\n") and error.count("\n") == 1, error
    return error.removeprefix("jaxtrain: error: ").removesuffix("\n")


def holds(text: str, fact: str) -> bool:
    """Return whether a text holds a fact as a whole word or number, of which sign and decimal point are parts."""
    if re.match(r"[-.]*\d", fact):
        before = r"(?<![\w.-])" + (r"(?<!\d,)" if fact[0].isdigit() else "")
    else:
        before = r"(?<!\w)" if re.match(r"\w", fact) else ""
    after = r"(?!\w)(?![.,]\d)" if re.search(r"\w\Z", fact) else ""
    return re.search(before + re.escape(fact) + after, text) is not None


def stable(text: str, varies: Mapping[str, str] | None = None) -> str:
    """Return a text with names in place of what differs between runs, machines and versions of libraries."""
    for name, pattern in (varies or {}).items():
        text, found = re.subn(pattern, name, text)
        assert found, f"{pattern!r} is not in: {text}"
    text = re.sub(re.escape(str(session.temporary)) + r"(/[\w-]+)?", "<tmp>", text)
    text = re.sub(re.escape(str(ROOT)) + r"(?![\w-])", "<checkout>", text)
    text = re.sub(r"(<checkout>[\w/.-]+):\d+", r"\1:<line>", text)
    names, pattern = _system_errors()
    text = pattern.sub(lambda match: f"<{names[match[1]]}>", text)
    text = text.rstrip("\n")  # of a command, whose line ends
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _without_places(text: str) -> str:
    """Return a text without the names of the temporary folder and the checkout, in which numbers are no facts."""
    text = re.sub(re.escape(str(session.temporary)) + r"(?![\w-])", "<tmp>", text)
    return re.sub(re.escape(str(ROOT)) + r"(?![\w-])", "<checkout>", text)


@functools.cache
def _system_errors() -> tuple[dict[str, str], re.Pattern]:
    names = {os.strerror(number): name for number, name in errno.errorcode.items()}
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    return names, re.compile(rf"(?:\[Errno \d+\] )?\b({'|'.join(longest_first)})\b")


def _compare(text: str) -> None:
    __tracebackhide__ = True
    test = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]  # without " (call)"
    entry = session.last = (test, session.last[1] + 1 if session.last[0] == test else 1)
    if session.writing:
        session.texts[entry] = text
        return
    expected = _read_once(GOLDEN).get(entry)
    remedy = f"If that is right, record it: python -m pytest -n 0 --write-messages {shlex.quote(test)}"
    assert expected is not None, f"{_title(entry)} has no text in {GOLDEN.name}. Now it says\n{text}\n{remedy}"
    assert text == expected, f"it said\n{expected}\nand now says\n{text}\n{remedy}"


def read(path: Path) -> dict[Entry, str]:
    """Return the recorded texts."""
    entries: dict[Entry, list[str]] = {}
    entry: Entry = ("", 0)
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
        if line.startswith("    "):
            entries[entry].append(line[4:])
        elif line and not line.startswith("#"):
            name, number = re.fullmatch(r"(.*?)(?: #(\d+))?", line).groups()
            entry = name, int(number or 1)
            entries[entry] = []
    return {entry: "\n".join(lines) for entry, lines in entries.items()}


_read_once = functools.cache(read)


def write() -> None:
    """Merge what the tests of this process say into the golden file, which other processes may be writing too."""
    written = {test for test, _ in session.texts}
    files = {test.partition("::")[0] for test in session.collected}

    def stays(test: str) -> bool:
        was_collected = test in session.collected or test.partition("::")[0] not in files
        return exists(test) and was_collected and test not in written

    lock = os.open(GOLDEN.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        texts = {entry: text for entry, text in read(GOLDEN).items() if stays(entry[0])} | session.texts
        blocks = (
            "\n".join([_title(entry), *(f"    {line}" for line in text.split("\n"))]) + "\n"
            for entry, text in sorted(texts.items())
        )
        new = GOLDEN.with_suffix(".new")
        new.write_text("\n".join([HEAD, *blocks]), encoding="utf-8")
        new.replace(GOLDEN)
    finally:
        os.close(lock)


def exists(test: str) -> bool:
    """Return whether there is a test function of this id, whatever its parameters."""
    file, _, name = test.partition("::")
    return name.partition("[")[0] in _functions(ROOT / file)


@functools.cache
def _functions(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.exists() else ast.Module([], [])
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def _title(entry: Entry) -> str:
    test, number = entry
    return test if number == 1 else f"{test} #{number}"
