"""A terminal, pipe or file that takes nothing more ends no command; Ctrl-C does, in one line."""

import os
import signal
import subprocess
import sys
import time

import pytest

SAYS_MUCH = """\
import sys
from jaxtrain.cli import main
def say_much():
    for number in range(5000):
        print("d\\u00e9 \\u2192", number)
    print("\\u00e9", file=sys.stderr)
    open("done", "w").close()
    return 0
main.main = say_much
sys.argv = ["jaxtrain", *sys.argv[1:]]
sys.exit(main.command())
"""
WAITS = """\
import signal, sys, time
from jaxtrain.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait():
    print("waiting", flush=True)
    {waiting}
main.main = wait
sys.argv = ["jaxtrain", "train"]
sys.exit(main.command())
"""


def shell(command, folder, *words, **environment):
    """Run a program that says much under the shell's redirections; return its exit code, output and errors."""
    program = f"'{sys.executable}' -c '{SAYS_MUCH}' {' '.join(words)}"
    process = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('PROGRAM', program)}"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize(
    "command",
    [
        "PROGRAM >&-",
        "PROGRAM | head -1 >/dev/null",
        "PROGRAM 2>&1 | true",
        "PROGRAM >/dev/full",
        "PROGRAM >/dev/null 2>/dev/full",
        "PROGRAM <&- >&- 2>&-",
    ],
)
def test_training_goes_on_to_its_end_whoever_listens(command, tmp_path):
    code, _, errors = shell(command, tmp_path, "train", GLIBC_TUNABLES="glibc.malloc.arena_max=1")
    assert code == 0 and (tmp_path / "done").exists()
    assert errors.decode() in ("", "é\n")


def test_files_do_not_take_the_place_of_a_closed_output(tmp_path):
    shell("PROGRAM >&-", tmp_path, "plot")
    assert (tmp_path / "done").read_bytes() == b""


def test_letters_that_the_encoding_lacks_are_escaped(tmp_path):
    code, out, errors = shell("PROGRAM", tmp_path, "train", PYTHONIOENCODING="ascii")
    assert code == 0
    assert out.splitlines()[-1] == rb"d\xe9 \u2192 4999" and errors == b"\\xe9\n"


def test_a_command_whose_result_is_what_it_prints_says_when_that_is_lost(tmp_path):
    code, _, errors = shell("PROGRAM >/dev/full", tmp_path, "eval")
    assert code == 2 and errors.decode() == "é\njaxtrain: error: standard output: No space left on device\n"


def test_a_command_whose_reader_has_enough_ends_quietly(tmp_path):
    code, out, errors = shell("PROGRAM | head -1", tmp_path, "config", "show")
    assert code == 0 and out.decode() == "dé → 0\n" and errors.decode() == "é\n"


IN_PYTHON = "time.sleep(100)"
AS_ANOTHER_ERROR = """
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        raise ImportError("an extension could not be initialised") from None"""
LOST = """
    from jaxtrain.cli import terminal
    terminal.CLEANING_SECONDS = 0.1
    while True:
        try:
            time.sleep(100)
        except KeyboardInterrupt:
            print("Exception ignored in a callback", file=sys.stderr)"""


@pytest.mark.parametrize("waiting", [IN_PYTHON, AS_ANOTHER_ERROR, LOST], ids=["raised", "as another error", "lost"])
def test_an_interrupt_is_one_line_wherever_it_strikes(waiting):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(waiting=waiting)],
        env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "jaxtrain: interrupted\n")
