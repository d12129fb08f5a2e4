"""A mixture's layer in pieces on three streams. Pan et al. (2025), "FSMoE", arXiv:2501.10714.

The tokens of a layer go in `degree` pieces through five works each: the all-to-all between servers, the gather within
them, the experts, the scatter within, and the all-to-all back. Works between servers, works within them and experts
are three streams, on which the works of other pieces overlap. Two streams, without those within servers, are the
pipeline of Hwang et al. (2023), "Tutel", arXiv:2206.03382. The paper finds the degree by a solver for constrained
programs; here it is found by bounds, and is exact. In a backward pass the all-reduce of gradients is cut to fit into
what the pieces leave idle between servers.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtrain.planning.peaks import peak_flops
from jaxtrain.planning.simulators.clock import Span, Work, timeline
from jaxtrain.planning.simulators.linear import Linear

MOST_PIECES = 16
NOTHING = Linear(0.0, 0.0)
BETWEEN, WITHIN, EXPERTS = "between", "within", "experts"
WORKS = (("dispatch", BETWEEN), ("gather", WITHIN), ("experts", EXPERTS), ("scatter", WITHIN), ("combine", BETWEEN))


class Slice(NamedTuple):
    """Bytes `start` to `end` of the gradients, reduced at a time of the layer, or behind it where `begin` is None."""

    start: int
    end: int
    begin: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureLayer:
    """A layer that moves `moved_bytes` over each kind of link, each way, and computes `tokens` in experts."""

    moved_bytes: float
    tokens: float
    between: Linear
    within: Linear = NOTHING
    experts: Linear

    @classmethod
    def on(
        cls,
        device_kind: str,
        *,
        tokens: int,
        d_model: int,
        expert_parameters: int,
        top_k: int,
        between: Linear,
        within: Linear = NOTHING,
        share_of_peak: float = 0.4,
        bytes_each: int = 2,
    ) -> "MixtureLayer":
        """Return the layer of a device of a kind in `planning/peaks.py`, whose experts reach a share of its peak.

        Raises:
            ValueError: the peak is not known.
        """
        peak = peak_flops(device_kind)
        if peak is None:
            raise ValueError(f"{device_kind=}: its peak is not known; give `experts` yourself")
        seconds_a_token = 2 * expert_parameters / (peak * share_of_peak)
        experts, moved = Linear(0.0, seconds_a_token), tokens * top_k * d_model * bytes_each
        return cls(moved_bytes=moved, tokens=tokens * top_k, between=between, within=within, experts=experts)

    def seconds(self, work: str, degree: int) -> float:
        """Return the time of one work of one piece."""
        cost = {BETWEEN: self.between, WITHIN: self.within, EXPERTS: self.experts}[dict(WORKS)[work]]
        return cost((self.tokens if work == "experts" else self.moved_bytes) / degree)

    def works(self, degree: int) -> list[Work]:
        """Return the works of all pieces. A stream does those of one kind for all pieces before the next kind."""
        found = []
        for index, (work, stream) in enumerate(WORKS):
            for piece in range(degree):
                needs = ((WORKS[index - 1][0], piece),) if index else ()
                found.append(Work((work, piece), stream, self.seconds(work, degree), needs))
        return found

    def timeline(self, degree: int) -> list[Span]:
        return list(timeline(self.works(degree)).values())

    def makespan(self, degree: int) -> float:
        """Return the time of the layer in so many pieces."""
        return max(span.end for span in self.timeline(degree))

    def least(self, degree: int) -> float:
        """Return a time that no order of so many pieces beats: of a stream, with what comes before and behind it."""
        one = [self.seconds(work, degree) for work, _ in WORKS]
        between, within, experts = degree * (one[0] + one[4]), degree * (one[1] + one[3]), degree * one[2]
        return max(between, one[0] + within + one[4], one[0] + one[1] + experts + one[3] + one[4])

    def best_degree(self, most: int = MOST_PIECES) -> int:
        """Return the least number of pieces of those with which the layer takes the least time."""
        best = (self.makespan(1), 1)
        for degree in sorted(range(2, most + 1), key=self.least):
            if self.least(degree) > best[0]:
                break
            best = min(best, (self.makespan(degree), degree))
        return best[1]

    def gradient_slices(self, degree: int, gradient_bytes: int) -> list[Slice]:
        """Return the slices of a gradient that fit into the idle time between servers, and what is left behind them.

        The slices of a layer lengthen it by nothing, and cover every byte once.
        """
        spans = self.timeline(degree)
        end = max(span.end for span in spans)
        busy = sorted((span.begin, span.end) for span in spans if span.work.stream == BETWEEN)
        slices, sent, free = [], 0, 0.0
        for begin, finish in [*busy, (end, end)]:
            size = min(self.between.most(begin - free), gradient_bytes - sent) if begin > free else 0
            if size:
                slices.append(Slice(sent, sent + size, free))
                sent += size
            free = max(free, finish)
        if sent < gradient_bytes:
            slices.append(Slice(sent, gradient_bytes, None))
        return slices
