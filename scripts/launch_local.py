"""Run one jaxtrain command as N processes of this machine, as a cluster would.

    python scripts/launch_local.py 2 jaxtrain train configs/quickstart.gin

To rehearse a run of several hosts on a laptop, or to give every GPU a process of its own. The processes find each other
by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Process i takes GPU i where there are GPUs, and else
has one CPU device, or as many as XLA_FLAGS=--xla_force_host_platform_device_count=4 says.

The first process writes to the terminal as it would alone, the others with their number before each line. When one
fails, the launcher says which and how, tells the others to stop, and ends with its exit code. Ctrl-C, SIGTERM and
SIGHUP reach every process once: jaxtrain saves and ends. In Python, because signals get lost between a shell and its
children.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TextIO

POLL_SECONDS = 0.1
STDOUT, STDERR = 1, 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("processes", type=int, help="how many")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what each of them runs")
    arguments = parser.parse_args()
    if arguments.processes < 1 or not arguments.command:
        parser.error("give a number of processes, at least 1, and a command")

    running: list[subprocess.Popen] = []
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, frame: asked.append(number))
    address = f"127.0.0.1:{free_port()}"
    for index in range(arguments.processes):
        running.append(start(arguments.command, index, arguments.processes, address))
    return supervise(running, asked)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command: list[str], index: int, count: int, address: str) -> subprocess.Popen:
    """Start one process, in a session of its own so that Ctrl-C reaches it from here only."""
    settings = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "JAX_LOCAL_DEVICE_IDS": str(index),  # of GPUs; JAX reads it for no other device
    }
    pipe = subprocess.PIPE if index else None
    process = subprocess.Popen(
        command,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )
    if index:
        for source, target in ((process.stdout, STDOUT), (process.stderr, STDERR)):
            threading.Thread(target=copy, args=(source, target, f"[process {index}] ")).start()
    return process


def copy(source: TextIO, target: int, prefix: str) -> None:
    for line in source:  # to the end, or else the process would wait for its lines to be read
        say(f"{prefix}{line.rstrip()}", target)


def say(line: str, target: int) -> None:
    """Write a line to a descriptor; one that nobody takes is dropped."""
    with contextlib.suppress(OSError):
        os.write(target, f"{line}\n".encode())


def supervise(running: list[subprocess.Popen], asked: list[int]) -> int:
    """Pass signals on and wait for all; return the exit code of the first that failed, 0 if none did."""
    failed = None
    while None in (codes := [process.poll() for process in running]) or (any(codes) and not failed):
        if any(codes) and not failed:
            failed = codes
            asked.append(signal.SIGTERM)
            say(f"launch_local: {failures(codes)}; the others are told to stop", STDERR)
        while asked:
            number = asked.pop(0)
            for process in running:
                process.send_signal(number)
        time.sleep(POLL_SECONDS)
    return first_failure(failed or codes)


def failures(codes: list[int | None]) -> str:
    """Say which processes have failed, and with what."""
    return ", ".join(f"process {index} {how(code)}" for index, code in enumerate(codes) if code)


def how(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by signal {-code} ({signal.strsignal(-code)})"


def first_failure(codes: list[int | None]) -> int:
    """Return the first exit code that tells of a failure, as a shell would give it; 0 if there is none."""
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
