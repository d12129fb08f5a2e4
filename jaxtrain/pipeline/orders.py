"""Orders of actions that several schedules share."""

from collections.abc import Iterable, Sequence
from itertools import pairwise, zip_longest

from jaxtrain.pipeline.list_scheduling import reorder
from jaxtrain.pipeline.placement import Placement
from jaxtrain.pipeline.simulator import Costs
from jaxtrain.pipeline.table import Action, Table, backward, forward, fused, of_stages, weight


def one_forward_one_backward(forwards: Sequence[Action], backwards: Sequence[Action], warmup: int) -> list[Action]:
    """Return `warmup` forwards, then one forward and one backward in turn, then the backwards that are left."""
    pairs = zip_longest(forwards[warmup:], backwards)
    return [*forwards[:warmup], *(action for pair in pairs for action in pair if action is not None)]


def groups(stages: int, microbatches: int) -> list[range]:
    """Return the microbatches that pass a chunk together: `stages` of them or a few more, in groups that differ by one.

    So the first of a group is back on the first stage when its last has left, and no stage waits. The larger groups
    come first, as the forwards before the first backward are those of the first group. With fewer microbatches than
    stages there is one group, and stages wait. For a multiple of the number of groups this is PyTorch's rule.
    """
    count = max(1, microbatches // stages)
    size, larger = divmod(microbatches, count)
    starts = [index * size + min(index, larger) for index in range(count + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def grouped(stages: int, microbatches: int, chunks: Iterable[int]) -> list[tuple[int, int]]:
    """Return (microbatch, chunk) by groups of microbatches, each group through one chunk after the other."""
    chunks = list(chunks)
    return [(i, chunk) for group in groups(stages, microbatches) for chunk in chunks for i in group]


def interleaved_row(stage: int, stages: int, microbatches: int, chunks_per_stage: int) -> list[Action]:
    """Return a stage's row of the interleaved schedule of Narayanan et al. (2021), with fused backward.

    So many forwards precede the first backward that afterwards every tick can run one of both. The first backward is
    then one tick later on each stage back.
    """
    chunks = range(stage, stages * chunks_per_stage, stages)
    forwards = [forward(*unit) for unit in grouped(stages, microbatches, chunks)]
    backwards = [fused(*unit) for unit in grouped(stages, microbatches, reversed(chunks))]
    warmup = interleaved_warmup(stages, microbatches, chunks_per_stage) + 2 * (stages - 1 - stage)
    return one_forward_one_backward(forwards, backwards, warmup)


def interleaved_warmup(stages: int, microbatches: int, chunks_per_stage: int) -> int:
    """Return the forwards of the last stage before the last chunk: those of the first group through all others."""
    return (chunks_per_stage - 1) * len(groups(stages, microbatches)[0])


def split_row(stage: int, microbatches: int, *, warmup: int, deferred: int) -> list[Action]:
    """Return 1F1B with a split backward: each W follows the B of `deferred` microbatches later, the rest come last."""
    row = [forward(microbatch, stage) for microbatch in range(min(warmup, microbatches))]
    for microbatch in range(microbatches):
        row.append(backward(microbatch, stage))
        row += [weight(microbatch - deferred, stage)] if microbatch >= deferred else []
        row += [forward(microbatch + warmup, stage)] if microbatch + warmup < microbatches else []
    return row + [weight(microbatch, stage) for microbatch in range(max(0, microbatches - deferred), microbatches)]


def by_age(placement: Placement, microbatches: int) -> Table:
    """Return the table of a fused schedule that list scheduling finds: of the actions that are ready, the oldest first.

    The age of an action is the time at which it would run if a microbatch entered in every interval of a stage's F,
    and none ever waited; B counts as two F. With two weight copies the microbatches take turns on them, and a pair has
    one age. At most 2p microbatches have entered and not left.
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
