"""Damaged inputs of every kind, one after the other in one process: right or refused, and nothing else.

    uv run python scripts/fuzz.py [--cases 300] [--seed 0] [--only override] [--seconds 10]

Configuration files, `--set`, schedules named in text, tables of schedules, data files of every format, tokenizer files
and folders of Hugging Face models are damaged by a seeded generator and taken in as the commands take them in. Counted
for each kind, and listed below the table:

    tracebacks   an exception other than those that `jaxtrain.cli.main` makes one line of
    hangs        not done after `--seconds`
    silent       accepted, and not what the input says: a line that is in force nowhere, another number than is written,
                 documents lost or changed, a table that computes other gradients. What "says" means is each kind's own,
                 in the docstring of its file in scripts/fuzzed/
    unnamed      refused in a line that does not name the file or key, or in none
    valid        refused although nothing was damaged

`refused` and `accepted` are the rest, and both are right. Exits with 1 where a count is not 0.
"""

import argparse
import collections
import faulthandler
import itertools
import os
import signal
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzed import configurations, data_files, model_folders, tables, tokenizer_files
from fuzzed.case import Case

import jaxtrain.config  # noqa: F401  its import is nobody's time
from jaxtrain.cli.main import REFUSALS

KINDS: dict[str, Callable[[Random, Path], Iterator[Case]]] = {
    "gin file": configurations.gin_files,
    "override": configurations.overrides,
    "schedule": configurations.schedules,
    "table": tables.files,
    "data file": data_files.files,
    "tokenizer file": tokenizer_files.files,
    "model folder": model_folders.folders,
}
RIGHT, WRONG = ("refused", "accepted"), ("tracebacks", "hangs", "silent", "unnamed", "valid")


class Verdict(NamedTuple):
    count: str  # of RIGHT or WRONG
    case: Case
    text: str


class Hang(BaseException):
    """The time is over. Not an Exception, which something on the way might take for its own."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10, help="for a case")
    parser.add_argument("--only", choices=KINDS, help="one kind")
    arguments = parser.parse_args(argv)
    wrong = []
    print(f"{'kind':<16}" + "".join(f"{count:>12}" for count in RIGHT + WRONG), flush=True)
    for kind in [arguments.only] if arguments.only else KINDS:
        verdicts = run(kind, cases=arguments.cases, seed=arguments.seed, seconds=arguments.seconds)
        counts = collections.Counter(verdict.count for verdict in verdicts)
        print(f"{kind:<16}" + "".join(f"{counts[count]:>12}" for count in RIGHT + WRONG), flush=True)
        wrong += [verdict for verdict in verdicts if verdict.count in WRONG]
    for count, case, text in wrong:
        print(f"{count}: {case.kind}, {case.what}: {text}")
    return int(bool(wrong))


def run(kind: str, *, cases: int, seed: int, seconds: float) -> list[Verdict]:
    """Judge so many cases of a kind, the same for the same seed."""
    random = Random(zlib.crc32(f"{kind} {seed}".encode()))
    with tempfile.TemporaryDirectory() as folder:
        return [judge(case, seconds) for case in itertools.islice(KINDS[kind](random, Path(folder)), cases)]


def judge(case: Case, seconds: float) -> Verdict:
    """Take a case in, for so long, and say what came of it."""
    old = signal.signal(signal.SIGALRM, _stop)
    faulthandler.dump_traceback_later(20 * seconds, exit=True)  # for code that no signal reaches
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # and again, where what was called swallowed it
    try:
        return _outcome(case)
    except Hang:
        return Verdict("hangs", case, f"after {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, old)


def _outcome(case: Case) -> Verdict:
    try:
        made = case.attempt()
    except REFUSALS as error:
        line = str(error)
        if case.valid:
            return Verdict("valid", case, line)
        return Verdict("refused" if any(name in line for name in case.names) else "unnamed", case, line)
    except Hang:
        raise
    except BaseException as error:  # PanicException of Rust extensions is no Exception
        return Verdict("tracebacks", case, "".join(traceback.format_exception_only(error)).strip()[:500])
    if fault := case.fault(made):
        return Verdict("silent", case, fault)
    return Verdict("accepted", case, "")


def _stop(signum, frame):
    raise Hang


if __name__ == "__main__":
    sys.exit(main())
