"""Work of a pipelined train step, over that of the same step without a pipeline, for every schedule.

    uv run python scripts/bench_pipeline.py [--stages 4] [--only ZBH1 VZB] [--rounds 2]

The stages are simulated devices that share one core: the process is bound to it, so neither side gains by threads, and
a stage that waits costs nothing. What is compared is the processor time of a step, summed over all devices, with that
of one device on the same global batch (m = 4p microbatches of 1024 tokens, float32, AdamW, the update included). So
the overhead is what the executor itself adds: buffers, exchanges, weights brought to their stages, work done twice. The
bubble is not in it, and stands beside it from the simulator (one compiled loop, F:B:W as the layers have it); nor is
the time of messages between real devices.

The unpipelined step accumulates the same m microbatches, one after another, so that matrix products have the same
sizes and caches hold as much; one more row has the whole batch at once, no faster. Steps alternate, without and
with the pipeline, since machines drift; the ratio is that of the fastest of each. Memory is the temporaries of the
compiled step on one device. Slots are those of the tick program: inputs, residuals, gradients, deferred.
"""

import argparse
import os
import sys
import time
from typing import NamedTuple

from jaxtrain.cli.main import KEEP_MEMORY

WIDTH, HIDDEN, VOCABULARY, LENGTH, ROWS = 256, 512, 1024, 256, 4
MICROBATCHES_A_STAGE = 4


class Step(NamedTuple):
    """A compiled step, what it takes, and its temporaries."""

    call: object
    mesh: object
    state: object
    batch: object
    bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--layers", type=int, help="of the model; default: four a stage")
    parser.add_argument("--only", nargs="*", help="these schedules, by name")
    parser.add_argument("--rounds", type=int, default=2, help="timed steps of each; the fastest counts")
    arguments = parser.parse_args()
    restart_on_one_core(arguments.stages)
    stages, layers = arguments.stages, arguments.layers or 4 * arguments.stages
    measure(stages, layers, arguments.only, arguments.rounds)


def restart_on_one_core(stages: int) -> None:
    """Start again with what has to be known before the process begins: its core, its devices, its memory."""
    if "BENCH_PIPELINE" in os.environ:
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={stages}"}
    os.environ.update(KEEP_MEMORY | flags | {"BENCH_PIPELINE": "started"})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def measure(stages: int, layers: int, only: list[str] | None, rounds: int) -> None:
    from jaxtrain.cli.schedule_catalog import all_schedules
    from jaxtrain.pipeline.lower import lower
    from jaxtrain.pipeline.simulator import simulate_ticks
    from jaxtrain.train.gradients import Accumulate
    from jaxtrain.train.gradients.pipelined import Pipelined

    count = MICROBATCHES_A_STAGE * stages
    plain = compiled(Accumulate(microbatches=count), 1, layers, count)
    print(f"{stages} stages, {count} microbatches of {ROWS * LENGTH} tokens, {layers} layers of width {WIDTH}")
    print(f"{'':<22}{'overhead':>9}{'seconds':>9}{'MB':>8}{'peak':>6}{'bubble':>8}{'ticks':>7}  slots")
    report("unpipelined", 1.0, run(plain), plain.bytes)
    strategies = {"whole batch at once": Accumulate()}
    strategies |= {
        name: Pipelined(schedule=schedule(), microbatches=count) for name, schedule in all_schedules().items()
    }
    for name, strategy in strategies.items():
        if only and name not in only:
            continue
        piped = isinstance(strategy, Pipelined)
        step = compiled(strategy, stages if piped else 1, layers, count)
        run(step)
        pairs = [(run(plain), run(step)) for _ in range(rounds)]
        base, own = (min(times) for times in zip(*pairs, strict=True))
        details = ""
        if piped:
            plan = strategy.plan(stages, decoder(layers), LENGTH)
            program, bubble = lower(*plan), simulate_ticks(*plan).idle_share
            peak = program.slots.residuals / plan.table.placement.chunks_per_stage
            details = f"{peak:>6g}{bubble:>8.1%}{program.ticks:>7}  {' '.join(map(str, program.slots))}"
        report(name, own / base, own, step.bytes, details)


def report(name: str, overhead: float, seconds: float, temporaries: int, details: str = "") -> None:
    print(f"{name:<22}{overhead:>9.3f}{seconds:>9.2f}{temporaries / 1e6:>8.0f}{details}", flush=True)


def run(step: Step) -> float:
    """Return the processor time of one step."""
    import jax

    with jax.set_mesh(step.mesh):
        start = time.process_time()
        jax.block_until_ready(step.call(step.state, step.batch, jax.random.key(0)))
    return time.process_time() - start


def decoder(layers: int):
    """Return the configuration of the model."""
    from jaxtrain.models.presets import llama

    return llama(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        layers=layers,
        heads=WIDTH // 64,
        kv_heads=WIDTH // 64,
        hidden=HIDDEN,
        max_length=LENGTH,
    )


def compiled(strategy, stages: int, layers: int, count: int) -> Step:
    """Compile the train step of a strategy for so many stages."""
    import jax
    import numpy as np

    from jaxtrain.mesh import MeshConfig
    from jaxtrain.models.decoder import abstract_model
    from jaxtrain.objectives.next_token import NextToken
    from jaxtrain.optim.adamw import AdamW
    from jaxtrain.optim.base import transformation, used_rate
    from jaxtrain.optim.schedules import Constant
    from jaxtrain.shapes import Batch
    from jaxtrain.train.state import create_state
    from jaxtrain.train.step import make_train_step

    model = decoder(layers)
    mesh = MeshConfig(stage=stages, fsdp=1).build(jax.devices()[:stages])
    graph, _, axes = abstract_model(model)
    optimizer = AdamW(learning_rate=Constant(peak=3e-4))
    rate = optimizer.learning_rate.build(1)
    tx = transformation(optimizer, rate, axes.params, clip_norm=None)
    rows = np.random.default_rng(1).integers(0, VOCABULARY, (count * ROWS, LENGTH + 1), dtype=np.int32)
    ones = np.ones((count * ROWS, LENGTH), np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), ones.shape)
    batch = Batch(rows[:, :-1], rows[:, 1:], ones.astype(np.float32), ones, positions)
    state = create_state(model, tx, axes, mesh, jax.random.key(0))
    step = jax.jit(make_train_step(graph, NextToken(), strategy, tx, used_rate(optimizer, rate)))
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
        call = step.lower(state, batch, jax.random.key(0)).compile()
    return Step(call, mesh, state, batch, call.memory_analysis().temp_size_in_bytes)


if __name__ == "__main__":
    main()
