"""Temporaries of every schedule, compiled ahead of time for TPUs, with few and with many microbatches.

    uv run python scripts/pipeline_memory.py [--topology v5e:2x2] [--microbatches 8 32] [--only ZBH1]

Four stages, and a decoder of 48 layers, which all chunks divide, without remat: the residual slots are then
most of the memory. One row a schedule, by the simulator's peaks: microbatches of a whole stage whose activations it
keeps, and whose W it has put off. Exits with 1 where a schedule that keeps its memory grows by 5% or more, one that
keeps all microbatches grows by less than the half of what they do, or a schedule needs over 1% less than one that has a
lower peak of one kind and no higher one of the other. About ten seconds a program.
"""

import argparse
import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
STAGES, LAYERS, ROWS, LENGTH, WIDTH = 4, 48, 4, 256, 128
LIMIT = 1.05
OUT_OF_ORDER = 0.99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x2", help="four devices, or more that tensor then splits")
    parser.add_argument("--microbatches", type=int, nargs=2, default=[8, 32], help="few and many")
    parser.add_argument("--only", default="", help="schedules whose name holds this")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path[:0] = [str(TESTS), str(TESTS / "pipeline")]
    from pipeline_cases import CASES, table_of

    from jaxtrain.pipeline.simulator import peak_activations, peak_deferred

    few, many = arguments.microbatches

    def peaks(case) -> tuple[float, ...]:
        table = table_of(case.schedule, STAGES, many)
        return tuple(max(peak(table)) * STAGES / table.placement.chunks for peak in (peak_activations, peak_deferred))

    print(f"{'schedule':<72}{'peak':>6}{'deferred':>9}{'m':>4}{'MB':>9}{'m':>4}{'MB':>9}{'growth':>8}")
    failed, found = 0, []
    for case in sorted((case for case in CASES if arguments.only in str(case)), key=peaks):
        counts = max(few, case.constant_from * STAGES), many
        sizes = [temporaries(case.schedule, count, arguments.topology) for count in counts]
        growth = sizes[1] / sizes[0]
        columns = "".join(f"{count:>4}{size / 1e6:>9.1f}" for count, size in zip(counts, sizes, strict=True))
        peak, deferred = peaks(case)
        print(f"{case!s:<72}{peak:>6.2f}{deferred:>9.2f}{columns}{growth:>8.3f}", flush=True)
        failed += growth < many / counts[0] / 2 if case.grows else growth >= LIMIT
        own = peak, deferred
        below = (size for other, size in found if other != own and other[0] <= peak and other[1] <= deferred)
        failed += sizes[1] < OUT_OF_ORDER * max(below, default=0)
        found.append((own, sizes[1]))
    return int(failed > 0)


def temporaries(schedule, microbatches: int, topology: str) -> int:
    """Compile a train step and return its temporaries."""
    from tiny import program_of, variant

    from jaxtrain.mesh import MeshConfig
    from jaxtrain.objectives.next_token import NextToken
    from jaxtrain.optim.adamw import AdamW
    from jaxtrain.optim.schedules import Cosine
    from jaxtrain.planning.memory import memory
    from jaxtrain.planning.topology import devices_of
    from jaxtrain.train.gradients.pipelined import Pipelined
    from jaxtrain.train.phases import Phase
    from jaxtrain.train.program import Recipe

    recipe = Recipe(
        model=variant(repeats=LAYERS, d_model=WIDTH, vocab_size=512, max_length=LENGTH),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-3, warmup_steps=1)),
        gradients=Pipelined(schedule=schedule, microbatches=microbatches),
        clip_norm=1.0,
        phases=(Phase(steps=2, batch_size=ROWS * microbatches, sequence_length=LENGTH),),
    )
    mesh = MeshConfig(stage=STAGES, fsdp=1, tensor=-1).build(devices_of(topology))
    return memory(program_of(recipe, mesh).compile()).temporaries


if __name__ == "__main__":
    sys.exit(main())
