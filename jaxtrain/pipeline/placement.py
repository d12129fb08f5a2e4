"""Which stage holds which chunk of the model.

A chunk is a number of consecutive repeats. A placement maps each chunk to a stage. With two weight copies (`replicas`),
each copy has its own map. Four published shapes, for four stages:

    loop           0 1 2 3 0 1 2 3    Narayanan et al. (2021), arXiv:2104.04473
    V              0 1 2 3 3 2 1 0    Qi et al. (2024), arXiv:2405.15362
    wave           V, repeated        Liu et al. (2023), arXiv:2308.15762
    bidirectional  any of them, and a second copy of the weights on the mirrored stages
                                      Li and Hoefler (2021), arXiv:2107.06925

Replicated stages (several devices on one slow stage, PipeDream) are left out: that is the data axis.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

MOST_ACTIONS = 1 << 20  # of a table


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """`homes[replica][chunk]` is the stage that computes the chunk for microbatches travelling on that replica."""

    stages: int
    homes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise ValueError(f"stages={self.stages}: a pipeline has at least one stage")
        if not self.homes or len({len(home) for home in self.homes}) != 1:
            raise ValueError(f"homes={self.homes}: every replica needs one stage for each chunk")
        held = {stage for home in self.homes for stage in home}
        if held != set(range(self.stages)):
            raise ValueError(
                f"homes={self.homes}: stages must be numbered 0 to {self.stages - 1} and each hold a chunk; "
                f"missing {sorted(set(range(self.stages)) - held)}, unknown {sorted(held - set(range(self.stages)))}"
            )

    @property
    def replicas(self) -> int:
        """Copies of every weight."""
        return len(self.homes)

    @property
    def chunks(self) -> int:
        """Chunks of the model; each microbatch passes all of them."""
        return len(self.homes[0])

    @property
    def chunks_per_stage(self) -> float:
        """Chunks that make up one stage's share of one weight copy: the unit of memory and work in the papers."""
        return self.chunks / self.stages

    def stage(self, chunk: int, replica: int = 0) -> int:
        """Return the stage that holds this copy of the chunk."""
        return self.homes[replica][chunk]

    @property
    def held(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The (replica, chunk) pairs of each stage, in the order of its stacked weights."""
        held: list[list[tuple[int, int]]] = [[] for _ in range(self.stages)]
        for replica, home in enumerate(self.homes):
            for chunk, stage in enumerate(home):
                held[stage].append((replica, chunk))
        return tuple(map(tuple, held))

    def repeats(self, count: int) -> tuple[range, ...]:
        """Return the repeats of each chunk. If `count` does not divide, the first chunks have one repeat more."""
        if count < self.chunks:
            fit = count // self.stages * self.stages
            most = count * self.stages // self.chunks  # stages, with as many chunks on each
            most -= most % self.replicas
            fewer = f", or a schedule of {fit} chunks" if fit else f", or mesh.stage={most}" if most else ""
            raise ValueError(
                f"model.repeats={count} cannot fill {self.chunks} chunks, every chunk needs a repeat; "
                f"nearest model.repeats={self.chunks}{fewer}"
            )
        short, extra = divmod(count, self.chunks)
        starts = [chunk * short + min(chunk, extra) for chunk in range(self.chunks + 1)]
        return tuple(range(starts[chunk], starts[chunk + 1]) for chunk in range(self.chunks))


def loop(stages: int, chunks_per_stage: int = 1) -> Placement:
    """Return the placement with chunk c on stage c mod p."""
    require_positive(stages=stages, chunks_per_stage=chunks_per_stage)
    require_room(stages=stages, chunks_per_stage=chunks_per_stage)
    return Placement(stages=stages, homes=(tuple(range(stages)) * chunks_per_stage,))


def wave(stages: int, waves: int = 1) -> Placement:
    """Return the placement that goes there and back `waves` times; at both turns data stays on its stage."""
    require_positive(stages=stages, waves=waves)
    require_room(stages=stages, waves=waves)
    there = tuple(range(stages))
    return Placement(stages=stages, homes=((there + there[::-1]) * waves,))


def v_shape(stages: int) -> Placement:
    """Return one wave: stage i holds chunks i and 2p-1-i, so stage 0 has both the first and the last."""
    return wave(stages, waves=1)


def bidirectional(placement: Placement) -> Placement:
    """Add a second weight copy that runs the other way, from the last stage to the first."""
    stages = placement.stages
    require_even(stages)
    mirrored = tuple(tuple(stages - 1 - stage for stage in home) for home in placement.homes)
    return Placement(stages=stages, homes=placement.homes + mirrored)


def require_positive(**counts: int) -> None:
    """Raise for a count below 1, with its name."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1; nearest 1")


def require_room(**counts: int) -> None:
    """Raise if a table of these counts would have too many actions: it would take minutes and gigabytes to write."""
    actions = 2 * math.prod(counts.values())
    if actions > MOST_ACTIONS:
        given = " x ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(f"{given} make a table of {actions:,} actions or more: one has at most {MOST_ACTIONS:,}")


def require_even(stages: int) -> None:
    """Raise for an odd number of stages: two weight copies cannot run in opposite directions on it."""
    if stages % 2:
        raise ValueError(
            f"stages={stages}: two directions meet in the middle, so the number of stages must be even; "
            f"nearest {nearest(stages, 2)}"
        )


def require_neighbours(placement: Placement) -> None:
    """Raise if the exchanges of one loop cannot carry a microbatch from chunk to chunk."""
    for home in placement.homes:
        for chunk, (here, there) in enumerate(pairwise(home)):
            if (there - here) % placement.stages not in (0, 1, placement.stages - 1):
                raise ValueError(
                    f"chunks {chunk} and {chunk + 1} are on stages {here} and {there}: the loop exchanges with "
                    f"neighbours only; put consecutive chunks on one stage, on neighbours, or on the last and the first"
                )


def nearest(value: int, factor: int) -> str:
    """Return the multiples of `factor` around `value`, as text for an error message."""
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else f"{factor}"
