"""Training throughput of a 6.5M-parameter decoder on CPU cores, against the same model in PyTorch.

    uv run python scripts/bench_train.py [--torch-python ENVIRONMENT/bin/python] [--rounds 3]

Both train d_model 256, 8 layers, 8 heads, gated feed-forward 704, 256 bytes, sequence 256, batch 16, float32, AdamW,
on one fixed batch. Processes alternate (jaxtrain, PyTorch eager, PyTorch compiled, and again), since machines drift;
each prints its best repetition of a round, and the ratio of the medians is what counts. All of them keep
freed memory, as `jaxtrain train` does, and layers are unrolled, as PyTorch's are. scripts/peers/setup.sh makes the
environment of PyTorch; without one, jaxtrain alone is timed.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jaxtrain.cli.main import KEEP_MEMORY

PEER = Path(__file__).parent / "peers" / "torch_decoder.py"
BATCH, LENGTH = 16, 256


def measure_ours(*, warmup: int, steps: int, repeats: int) -> float:
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

    model = llama(vocab_size=256, d_model=256, layers=8, heads=8, kv_heads=8, hidden=704, max_length=LENGTH)
    model = dataclasses.replace(model, scan=False)
    mesh = MeshConfig().build(jax.devices()[:1])
    graph, _, axes = abstract_model(model)
    optimizer = AdamW(learning_rate=Constant(peak=3e-4), weight_decay=0.01)
    rate = optimizer.learning_rate.build(1)
    tx = transformation(optimizer, rate, axes.params, clip_norm=None)
    state = create_state(model, tx, axes, mesh, jax.random.key(0))
    step = jax.jit(make_train_step(graph, NextToken(), Accumulate(), tx, used_rate(optimizer, rate)), donate_argnums=0)
    rows = np.random.default_rng(1).integers(0, 256, (BATCH, LENGTH + 1), dtype=np.int32)
    ones = np.ones((BATCH, LENGTH), np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH))
    batch = jax.device_put(Batch(rows[:, :-1], rows[:, 1:], ones.astype(np.float32), ones, positions))
    key, best = jax.random.key(2), 0.0
    with jax.set_mesh(mesh):
        for count in [warmup] + [steps] * repeats:
            start = time.perf_counter()
            for _ in range(count):
                state, metrics = step(state, batch, key)
            metrics["loss"].block_until_ready()
            if count == steps:
                best = max(best, steps * BATCH * LENGTH / (time.perf_counter() - start))
    return best


def tokens_per_second(command: list[str]) -> float:
    environment = os.environ | KEEP_MEMORY
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()
    return max(json.loads(line)["tokens_per_second"] for line in lines if line.startswith("{"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", help="the python of an environment that has PyTorch 2.13")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2, help="repetitions in a process; the best counts")
    parser.add_argument("--ours", action="store_true", help="time jaxtrain once, in this process")
    arguments = parser.parse_args()
    counts = {"steps": arguments.steps, "repeats": arguments.repeats}
    if arguments.ours:
        print(json.dumps({"peer": "jaxtrain", "tokens_per_second": round(measure_ours(warmup=3, **counts), 1)}))
        return
    flags = [flag for name, value in counts.items() for flag in (f"--{name}", str(value))]
    commands = {"jaxtrain": [sys.executable, __file__, "--ours", *flags]}
    if arguments.torch_python:
        commands |= {
            f"PyTorch {mode}": [arguments.torch_python, str(PEER), "--mode", mode, *flags]
            for mode in ("eager", "compile")
        }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(arguments.rounds):
        for name, command in commands.items():
            found[name].append(tokens_per_second(command))
            print(f"round {number + 1}  {name:16s} {found[name][-1]:9,.0f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        print(f"median {name:16s} {value:9,.0f} tokens/s  jaxtrain/{name}: {medians['jaxtrain'] / value:.2f}")


if __name__ == "__main__":
    main()
