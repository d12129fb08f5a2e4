"""Training throughput of two small decoders on CPU cores, against the same models in PyTorch.

    uv run python scripts/bench_train.py [--torch-python ENVIRONMENT/bin/python] [--case characters] [--rounds 3]

Two cases, both Llama decoders in float32 with AdamW, on one fixed batch:

* `bytes`, 6.5M parameters: d_model 256, 8 layers, 8 heads, gated feed-forward 704, 256 bytes, sequence 256, batch 16;
* `characters`, 0.8M, what people begin with: d_model 128, 4 layers, 4 heads, gated feed-forward 352, 65 characters,
  sequence 64, batch 12, gradients clipped to a norm of 1.

Processes alternate (jaxtrain with its layers unrolled, jaxtrain with its scan, PyTorch eager, PyTorch compiled, and
again), since machines drift; each prints its best repetition of a round, and the ratio of the medians is what counts.
All of them keep freed memory, as `jaxtrain train` does. scripts/peers/setup.sh makes the environment of PyTorch;
without one, jaxtrain alone is timed.

On a busy machine wall time says little. `taskset -c 0 ... --processor-time` runs all on one core, and counts the time
in which it works for them. What keeps several cores busy at once does not show in it.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxtrain.cli.main import KEEP_MEMORY

PEER = Path(__file__).parent / "peers" / "torch_decoder.py"


class Sizes(NamedTuple):
    """The sizes of the model and of its batch, as scripts/peers/torch_decoder.py takes them."""

    d_model: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    length: int
    batch: int
    clip_norm: float | None

    @property
    def tokens(self) -> int:
        return self.batch * self.length


CASES = {
    "bytes": Sizes(256, 8, 8, 704, vocabulary=256, length=256, batch=16, clip_norm=None),
    "characters": Sizes(128, 4, 4, 352, vocabulary=65, length=64, batch=12, clip_norm=1.0),
}
STEPS = {"bytes": 4, "characters": 40}  # of a repetition, some two seconds on two cores


def measure_ours(
    sizes: Sizes, *, scan: bool, clock: Callable[[], float], warmup: int, steps: int, repeats: int
) -> float:
    """Return the tokens a second of the best repetition."""
    import jax
    import numpy as np

    from jaxtrain.mesh import MeshConfig
    from jaxtrain.models.decoder import abstract_model
    from jaxtrain.models.presets import llama
    from jaxtrain.objectives.next_token import NextToken
    from jaxtrain.optim.adamw import AdamW
    from jaxtrain.optim.base import transformation, used_rate
    from jaxtrain.optim.schedules import Constant
    from jaxtrain.shapes import Batch
    from jaxtrain.train.gradients import Accumulate
    from jaxtrain.train.state import create_state
    from jaxtrain.train.step import make_train_step

    model = llama(
        vocab_size=sizes.vocabulary,
        d_model=sizes.d_model,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.heads,
        hidden=sizes.hidden,
        max_length=sizes.length,
    )
    model = dataclasses.replace(model, scan=scan)
    mesh = MeshConfig().build(jax.devices()[:1])
    graph, _, axes = abstract_model(model)
    optimizer = AdamW(learning_rate=Constant(peak=3e-4), weight_decay=0.01)
    rate = optimizer.learning_rate.build(1)
    tx = transformation(optimizer, rate, axes.params, clip_norm=sizes.clip_norm)
    state = create_state(model, tx, axes, mesh, jax.random.key(0))
    step = jax.jit(make_train_step(graph, NextToken(), Accumulate(), tx, used_rate(optimizer, rate)), donate_argnums=0)
    rows = np.random.default_rng(1).integers(0, sizes.vocabulary, (sizes.batch, sizes.length + 1), dtype=np.int32)
    ones = np.ones((sizes.batch, sizes.length), np.int32)
    positions = np.broadcast_to(np.arange(sizes.length, dtype=np.int32), ones.shape)
    batch = jax.device_put(Batch(rows[:, :-1], rows[:, 1:], ones.astype(np.float32), ones, positions))
    key, best = jax.random.key(2), 0.0
    with jax.set_mesh(mesh):
        for count in [warmup] + [steps] * repeats:
            start = clock()
            for _ in range(count):
                state, metrics = step(state, batch, key)
            metrics["loss"].block_until_ready()
            if count == steps:
                best = max(best, steps * sizes.tokens / (clock() - start))
    return best


def tokens_per_second(command: list[str]) -> float:
    environment = os.environ | KEEP_MEMORY
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()
    return max(json.loads(line)["tokens_per_second"] for line in lines if line.startswith("{"))


def commands(
    case: str, *, torch_python: str | None, steps: int | None, repeats: int, processor_time: bool
) -> dict[str, list[str]]:
    """Return the command that times each contestant once."""
    flags = ["--steps", str(steps or STEPS[case]), "--repeats", str(repeats)]
    flags += ["--processor-time"] if processor_time else []
    ours = [sys.executable, __file__, "--case", case, *flags]
    found = {f"jaxtrain, {form}": [*ours, "--ours", form] for form in ("unrolled", "scan")}
    if torch_python:
        sizes, threads = json.dumps(CASES[case]._asdict()), str(len(os.sched_getaffinity(0)))
        theirs = [torch_python, str(PEER), "--sizes", sizes, "--threads", threads, *flags]
        found |= {f"PyTorch, {mode}": [*theirs, "--mode", mode] for mode in ("eager", "compile")}
    return found


def contest(case: str, contestants: dict[str, list[str]], rounds: int) -> None:
    """Time all contestants in turn, and print the medians and their ratios."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, command in contestants.items():
            found[name].append(tokens_per_second(command))
            print(f"{case}  round {number + 1}  {name:18s} {found[name][-1]:9,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, median in medians.items():
        shares = [
            f"{ours} {medians[ours] / median:.2f} of it"
            for ours in medians
            if ours.startswith("jaxtrain") and ours != name
        ]
        print(f"{case}  median   {name:18s} {median:9,.0f} tokens/s  {'; '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", help="the python of an environment that has PyTorch 2.13")
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"of a repetition; default {STEPS}")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions in a process; the best counts")
    parser.add_argument("--processor-time", action="store_true", help="for one core of a busy machine; see above")
    parser.add_argument("--ours", choices=("unrolled", "scan"), help="time jaxtrain once, in this process")
    arguments = parser.parse_args()
    cases = arguments.case or list(CASES)
    if arguments.ours:
        for case in cases:
            counts = {"warmup": 3, "steps": arguments.steps or STEPS[case], "repeats": arguments.repeats}
            clock = time.process_time if arguments.processor_time else time.perf_counter
            found = measure_ours(CASES[case], scan=arguments.ours == "scan", clock=clock, **counts)
            print(json.dumps({"peer": "jaxtrain", "case": case, "tokens_per_second": round(found, 1)}))
        return
    for case in cases:
        found = commands(
            case,
            torch_python=arguments.torch_python,
            steps=arguments.steps,
            repeats=arguments.repeats,
            processor_time=arguments.processor_time,
        )
        contest(case, found, arguments.rounds)


if __name__ == "__main__":
    main()
