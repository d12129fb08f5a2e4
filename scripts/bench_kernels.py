"""Speed of every operation of jaxtrain_kernels beside what one would use instead, on the device at hand.

    uv run python scripts/bench_kernels.py [--only flash_attention adamw_8bit] [--size small] [--rows docs/new_rows.md]
        [--torch-python ENVIRONMENT/bin/python]

Implementations alternate: a round runs each once, and the median of the rounds counts, since machines drift. The share
is the time the device needs at least, by its copy bandwidth and its rate of bfloat16 matrix products as measured here,
over the time taken. An implementation that does not run on this device, or does not take the call, is listed with its
reason. flash-linear-attention runs in an environment of its own (torch, flash-linear-attention and a GPU).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers' process needs memory of the same device

import jax
import jax.numpy as jnp
from kernel_contests import SIZES, Contest, NotHere, Peer, Size, Work, contests

PEER = Path(__file__).parent / "peers" / "fla_kernels.py"
Clock = Callable[[], float]  # the seconds of one call


class Rates(NamedTuple):
    """What the device was measured to do in a second."""

    bytes: float
    flops: float

    def least_seconds(self, work: Work) -> float:
        return max(work.bytes / self.bytes, work.flops / self.flops)


class Row(NamedTuple):
    contest: Contest
    implementation: str
    seconds: float | None
    share: float | None
    reason: str = ""


def clock(run: Callable, inputs: tuple, calls: int) -> Clock:
    """Compile `run` and return what times it: the mean of so many calls."""
    compiled = jax.jit(run).lower(*inputs).compile()
    jax.block_until_ready(compiled(*inputs))

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = compiled(*inputs)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    return seconds


def measured_rates(size: Size, calls: int) -> Rates:
    """Return the best of three: bytes read and written by a copy, operations of a square matrix product."""
    x = jnp.ones(size.elements, jnp.float32)
    side = 1 << (size.width.bit_length() + 1)
    a = jnp.ones((side, side), jnp.bfloat16)
    copy, product = clock(lambda x: x + 1, (x,), calls), clock(jnp.matmul, (a, a), calls)
    return Rates(2 * x.nbytes / min(copy() for _ in range(3)), 2 * side**3 / min(product() for _ in range(3)))


def peer_clock(torch_python: str, peer: Peer, size: Size, calls: int) -> Clock:
    shape = [str(n) for n in (size.batch, size.length, size.heads, size.head_dim)]
    command = [torch_python, str(PEER), "--kernel", peer.kernel, "--calls", str(calls), "--shape", *shape]

    def seconds() -> float:
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["seconds"]

    return seconds


def clock_of(implementation, inputs: tuple, size: Size, calls: int, torch_python: str | None) -> Clock | NotHere:
    match implementation:
        case NotHere():
            return implementation
        case Peer() if torch_python is None:
            return NotHere("no --torch-python")
        case Peer():
            return peer_clock(torch_python, implementation, size, calls)
    try:
        return clock(implementation, inputs, calls)
    except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:  # refused, or out of memory
        return NotHere(str(error).split("\n")[0])


def run(contest: Contest, size: Size, rates: Rates, *, rounds: int, calls: int, torch_python: str | None) -> list[Row]:
    """Time all implementations of a contest, one after another in each round."""
    inputs = contest.inputs()
    clocks = {
        name: clock_of(implementation, inputs, size, calls, torch_python)
        for name, implementation in contest.implementations.items()
    }
    taken = {name: [] for name, one in clocks.items() if not isinstance(one, NotHere)}
    for _ in range(rounds):
        for name, seconds in taken.items():
            seconds.append(clocks[name]())
    rows = []
    for name, one in clocks.items():
        if isinstance(one, NotHere):
            rows.append(Row(contest, name, None, None, one.reason))
            continue
        median = statistics.median(taken[name])
        least = rates.least_seconds(contest.other_work.get(name, contest.work))
        rows.append(Row(contest, name, median, least / median))
    return rows


def table(rows: list[Row]) -> list[str]:
    """Return the lines of a markdown table of one contest: each implementation's speed over that of the first."""
    first = next(row.seconds for row in rows if row.seconds is not None)
    bound = "products" if rows[0].contest.work.flops else "copying"
    lines = [
        f"**{rows[0].contest.name}**, {rows[0].contest.shape}",
        "",
        f"| implementation | ms | speed over the first | share of {bound} |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.seconds is None:
            lines.append(f"| {row.implementation} | not run: {row.reason} | | |")
        else:
            lines.append(
                f"| {row.implementation} | {row.seconds * 1e3:.3f} | {first / row.seconds:.2f} | {row.share:.3f} |"
            )
    return [*lines, ""]


def heading(size: str, rates: Rates, rounds: int) -> list[str]:
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"CPU with {os.cpu_count()} cores"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "optax"))
    return [
        f"### Kernels on {kind}",
        "",
        f"`scripts/bench_kernels.py --size {size}`, {versions}; medians of {rounds} alternating rounds. Measured copy "
        f"bandwidth {rates.bytes / 1e9:,.1f} GB/s, bfloat16 products {rates.flops / 1e12:,.2f} TFLOP/s.",
        "",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=[""], help="contests whose names begin so")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10, help="calls in a measurement")
    parser.add_argument("--torch-python", help="the python of an environment with torch and flash-linear-attention")
    parser.add_argument("--rows", type=Path, help="a file to which the tables are appended")
    chosen = parser.parse_args(arguments)
    size = SIZES[chosen.size]
    those = [one for one in contests(size) if one.name.startswith(tuple(chosen.only))]
    if not those:
        sys.exit(f"--only {' '.join(chosen.only)}: none of {', '.join(one.name for one in contests(size))}")
    rates = measured_rates(size, chosen.calls)
    lines = heading(chosen.size, rates, chosen.rounds)
    print("\n".join(lines))
    options = {"rounds": chosen.rounds, "calls": chosen.calls, "torch_python": chosen.torch_python}
    for contest in those:
        found = table(run(contest, size, rates, **options))
        print("\n".join(found), flush=True)
        lines += found
    if chosen.rows:
        with chosen.rows.open("a") as file:
            file.write("\n".join(lines))


if __name__ == "__main__":
    main()
