"""Phases whose sequences grow and whose batches shrink as much, so that every step has the same tokens.

    phases = grow_length(Phase(steps=400, batch_size=8, sequence_length=1024), lengths=(128, 256, 512, 1024))

GrowLength: Jin et al. (2023), arXiv:2310.00576. The long cycle of multigrid training: Wu et al. (2020),
arXiv:1912.00998, section 3.1, for texts: 8 B x L/8, 4 B x L/4, 2 B x L/2, B x L, with the rate in proportion to the
batch. Left out: the short cycle, which changes the shape from step to step.
"""

from collections.abc import Sequence
from dataclasses import replace

from jaxtrain.train.phases import Phase

SHAPES = (8, 4, 2, 1)  # of a long cycle, the multiples of the batch


def grow_length(last: Phase, lengths: Sequence[int]) -> tuple[Phase, ...]:
    """Return one phase a length, which share the steps of `last`. Each has as many tokens a step as `last`.

    The rate is that of the run, as if there were one phase.

    Raises:
        ValueError: the lengths do not grow to that of `last`, or do not divide its tokens; or it has too few steps.
    """
    if list(lengths) != sorted(set(lengths)) or not lengths or lengths[-1] != last.sequence_length:
        raise ValueError(f"lengths={tuple(lengths)}: must grow to sequence_length={last.sequence_length}")
    shares = _shares(last.steps, len(lengths), "lengths")
    return tuple(_shaped(last, length, steps) for length, steps in zip(lengths, shares, strict=True))


def multigrid(last: Phase, *, cycles: int = 1, scale_rate: bool = True) -> tuple[Phase, ...]:
    """Return `cycles` long cycles of four shapes, which share the steps of `last`, the shape that each cycle ends with.

    `scale_rate`: the rate of the run is multiplied by the ratio of the batch to that of `last`.

    Raises:
        ValueError: the length is not divisible by 8, or there are too few steps or no cycles.
    """
    if cycles < 1:
        raise ValueError(f"cycles={cycles}: must be at least 1")
    shapes = SHAPES * cycles
    if last.sequence_length % SHAPES[0]:
        raise ValueError(f"sequence_length={last.sequence_length}: must be divisible by {SHAPES[0]}, for multigrid")
    found = []
    for factor, steps in zip(shapes, _shares(last.steps, len(shapes), "cycles"), strict=True):
        phase = _shaped(last, last.sequence_length // factor, steps)
        found.append(replace(phase, rate_factor=last.rate_factor * factor) if scale_rate else phase)
    return tuple(found)


def _shaped(last: Phase, length: int, steps: int) -> Phase:
    rows, rest = divmod(last.tokens_per_step, length)
    if rest:
        raise ValueError(f"lengths: {length} does not divide the {last.tokens_per_step} tokens of a step")
    return replace(last, steps=steps, batch_size=rows, sequence_length=length)


def _shares(steps: int, parts: int, name: str) -> list[int]:
    """Return the steps in equal parts, the later ones longer by one where there is a rest."""
    if steps < parts:
        raise ValueError(f"steps={steps}: fewer than the {parts} phases of {name}")
    return [steps * (part + 1) // parts - steps * part // parts for part in range(parts)]
