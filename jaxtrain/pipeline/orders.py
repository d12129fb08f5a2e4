"""Pieces that several schedules' orders are made of."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from jaxtrain.pipeline.list_scheduling import reorder
from jaxtrain.pipeline.placement import Placement
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.table import Action, Table, backward, forward, fused, of_stages, weight


def one_forward_one_backward(forwards: Sequence[Action], backwards: Sequence[Action], warmup: int) -> list[Action]:
    """`warmup` forwards, then one forward and one backward in turn, then the backwards that are left."""
    pairs = zip_longest(forwards[warmup:], backwards)
    return [*forwards[:warmup], *(action for pair in pairs for action in pair if action is not None)]


def grouped(stages: int, microbatches: int, chunks: Iterable[int]) -> list[tuple[int, int]]:
    """(microbatch, chunk) in groups of `stages` microbatches, each group through one chunk after the other."""
    chunks = list(chunks)
    groups = [range(start, min(start + stages, microbatches)) for start in range(0, microbatches, stages)]
    return [(microbatch, chunk) for group in groups for chunk in chunks for microbatch in group]


def interleaved_row(stage: int, stages: int, microbatches: int, chunks_per_stage: int) -> list[Action]:
    """A stage's row of the interleaved schedule of Narayanan et al. (2021), backward not split."""
    chunks = range(stage, stages * chunks_per_stage, stages)
    forwards = [forward(*unit) for unit in grouped(stages, microbatches, chunks)]
    backwards = [fused(*unit) for unit in grouped(stages, microbatches, reversed(chunks))]
    return one_forward_one_backward(forwards, backwards, interleaved_warmup(stage, stages, chunks_per_stage))


def interleaved_warmup(stage: int, stages: int, chunks_per_stage: int) -> int:
    """Forwards before the first backward: both then run in every tick, one stage later on each stage back."""
    return 2 * (stages - 1 - stage) + (chunks_per_stage - 1) * stages


def split_row(stage: int, microbatches: int, *, warmup: int, deferred: int) -> list[Action]:
    """1F1B with its backward split: each W follows the B of `deferred` microbatches later, the rest come last."""
    row = [forward(microbatch, stage) for microbatch in range(min(warmup, microbatches))]
    for microbatch in range(microbatches):
        row.append(backward(microbatch, stage))
        row += [weight(microbatch - deferred, stage)] if microbatch >= deferred else []
        row += [forward(microbatch + warmup, stage)] if microbatch + warmup < microbatches else []
    return row + [weight(microbatch, stage) for microbatch in range(max(0, microbatches - deferred), microbatches)]


def by_age(placement: Placement, microbatches: int) -> Table:
    """The fastest order of a fused schedule found by list scheduling: of what is ready, the oldest first.

    A microbatch is as old as if one entered for each stage-forward (B counted as two F) and none ever waited. With two
    weight copies the microbatches take turns on them and each pair counts as equally old. At most 2p are on their way.
    """
    copies, per_stage = placement.replicas, placement.chunks // placement.stages
    routes = [microbatch % copies for microbatch in range(microbatches)]
    ages: dict[Action, int] = {}
    for microbatch in range(microbatches):
        entry = microbatch // copies * copies * per_stage
        for chunk in range(placement.chunks):
            ages[forward(microbatch, chunk)] = entry + chunk
            ages[fused(microbatch, chunk)] = entry + placement.chunks + 2 * (placement.chunks - 1 - chunk)
    rows: list[list[Action]] = [[] for _ in range(placement.stages)]
    for action in sorted(ages, key=lambda action: (ages[action], action)):
        rows[placement.stage(action.chunk, routes[action.microbatch])].append(action)
    in_flight = max(1, 2 * placement.stages // copies)
    return reorder(of_stages(placement, rows, routes), Costs(), in_flight=in_flight)
