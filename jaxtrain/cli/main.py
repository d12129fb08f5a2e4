"""The `jaxtrain` command. Each subcommand is a file beside this one, imported once its arguments were read.

Such a file has `run(arguments) -> exit code`; arguments.py has the arguments of all. Errors of the user (a ValueError,
something unsupported) and of the system (a file that is missing or forbidden, a full disk or memory) end the command
with one line on stderr and exit code 2. Ctrl-C ends it with one line and exit code 130. Any other error keeps its
traceback.
"""

import argparse
import gc
import importlib
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from jaxtrain.cli import terminal
from jaxtrain.cli.arguments import COMMANDS, described
from jaxtrain.train.folder import SaveError

# Settings that glibc reads once, when a process starts: keep freed memory for the next step. On CPU, XLA allocates the
# memory of a step, a gigabyte, anew in every step. Mapping and clearing its pages takes a fifth of the step's time.
KEEP_MEMORY = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {"arena_max": 1, "mmap_max": 0, "trim_threshold": 1 << 40, "top_pad": 1 << 28}.items()
    )
}
# Python looks for cycles of garbage whenever so many more objects were made than freed. Its own number, 700, makes it
# search all that importing JAX makes, of which nothing is garbage, again and again: a sixth of a short command.
OBJECTS_BETWEEN_COLLECTIONS = 100_000
# Errors of the user or the system, which end the command with one line and exit code 2.
REFUSALS = (ValueError, OSError, SaveError, NotImplementedError, MemoryError)
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: "  # the beginning of XLA's error when a device is out of memory
# The files through which Linux reaches accelerators: NVIDIA, TPU (two kinds), AMD, and any on WSL.
ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd", "dxg")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which takes `--traceback` anywhere."""

    def __init__(self, **options):
        super().__init__(**options)
        help = "print the traceback of an error, too"
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=help)

    def error(self, message: str):
        self.exit(2, f"jaxtrain: error: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """Print the versions of what numbers depend on."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"jaxtrain {version('jaxtrain')}, jax {version('jax')}, Python {platform.python_version()}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    root = _Parser(prog="jaxtrain", description="Train language models on any device mesh.")
    root.add_argument("--version", action=_Version, nargs=0, help="print the versions of jaxtrain, jax and Python")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, **described(command.help, command.example)))
    return root


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return importlib.import_module(f"jaxtrain.cli.{arguments.command}").run(arguments)
    except Exception as error:
        if not is_refusal(error):
            raise
        if "traceback" in arguments:
            traceback.print_exc()
        print(f"jaxtrain: error: {refusal_line(error)}", file=sys.stderr)
        return 2


def is_refusal(error: Exception) -> bool:
    return isinstance(error, REFUSALS) or str(error).startswith(OUT_OF_MEMORY)


def refusal_line(error: Exception) -> str:
    """Return what a command says of an error of the user or the system."""
    return _one_line(_text(error))


def _text(error: Exception) -> str:
    """Return the text of an error. An error of the system is given without its number."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or "out of memory"  # MemoryError has no text


def _one_line(text: str) -> str:
    """Return a text on one line. Its lines are joined by semicolons, or after a colon by a space."""
    lines = "; ".join(filter(None, (line.strip() for line in text.splitlines())))
    return lines.replace(":; ", ": ")


def command() -> int:
    """Run `main` as a process of its own, and return its exit code.

    Without an accelerator, JAX_PLATFORMS is set to cpu: otherwise JAX looks for every accelerator whose compiler is
    installed, with many warnings. `jaxtrain train` and `sweep` are then started again with KEEP_MEMORY, unless the user
    has set that variable.
    """
    on_cpu = sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in ACCELERATORS)
    if on_cpu:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    trains = sys.argv[1:2] in (["train"], ["sweep"])
    if trains and on_cpu and not os.environ.keys() & KEEP_MEMORY.keys():
        os.environ.update(KEEP_MEMORY)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    streams = terminal.shield()
    code = _run_to_the_end(terminal.Interruption(streams.errors))
    gc.freeze()  # the process ends: nobody needs the memory of what is garbage by now
    sys.stdout.flush()
    if (lost := streams.lost) and not code and not trains:  # training leaves its result in files
        print(f"jaxtrain: error: standard output: {lost.strerror}", file=sys.stderr)
        code = 2
    return code


def _run_to_the_end(interruption: terminal.Interruption) -> int:
    """Run `main` and return its exit code. Where it fails, end the process without waiting for other processes."""
    try:
        code = main()
    except (Exception, KeyboardInterrupt):
        if not interruption.asked:
            raise
    if interruption.asked:
        code = terminal.INTERRUPTED
    if code:
        _peers().leave(code)
    return code


def _peers() -> ModuleType:
    from jaxtrain.train import peers  # imported only when needed, because it imports asyncio

    return peers


if __name__ == "__main__":
    sys.exit(command())
