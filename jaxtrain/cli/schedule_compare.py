"""A comparison of schedules for one number of stages and microbatches, as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from rich.console import Console
from rich.table import Table as RichTable

from jaxtrain.cli.schedule_costs import Priced
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.simulator import check_memory, peak_activations, simulate, simulate_ticks

DEFAULT = "PairedInterleaved"

_BUBBLES = ("bubble\nloop", "bubble\nfree", "bubble\ninside")
_COLUMNS = ("chunks", "copies", "split", *_BUBBLES, "time\nfree", "ticks", "peak", "sent")

_EXPLANATION = """
*          the default
bubble     loop: in one compiled program, where neighbouring stages wait for each other every tick; share of all time
           free: each stage on its own, from the step's start to its end, as most papers count; share of all time
           inside: each stage on its own, between its first and its last action, the worst one, as zero-bubble papers
           count; stages start and end staggered, which is free only where the next step may begin staggered, too
time       of a step, each stage on its own, in units of the costs of a whole stage; with --model, of a
           layer's forward
peak       most activations on a stage, in microbatches' passes through one stage
sent       messages between stages for each microbatch, forward and backward"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Figures of one schedule. Times are in units of the given costs, `peak` in one microbatch's passes of a stage."""

    name: str
    chunks_per_stage: float
    replicas: int
    split: bool
    makespan: float
    idle_share: float
    inside_share: float
    tick_idle_share: float
    ticks: int
    peak: float
    transfers: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """A schedule that does not support these numbers, or that exceeds the memory limit."""

    name: str
    reason: str
    peak: float  # most activations on a stage; infinite for numbers that it does not support


def print_comparison(
    console: Console,
    schedules: Mapping[str, Schedule],
    stages: int,
    microbatches: int,
    priced: Priced,
    memory_limit: float | None,
) -> None:
    """Print one row for each schedule, the smallest bubble first, and the reasons why others are left out.

    Raises:
        ValueError: all schedules are left out.
    """
    found = list(compare(schedules, stages, microbatches, priced, memory_limit))
    rows = sorted((row for row in found if isinstance(row, Row)), key=lambda row: (row.tick_idle_share, row.peak))
    misfits = [row for row in found if isinstance(row, Misfit)]
    if not rows:
        nearest = min(misfits, key=lambda misfit: misfit.peak)
        others = f"; nor does any of the {len(misfits) - 1} others fit" if len(misfits) > 1 else ""
        raise ValueError(f"{nearest.name}: {nearest.reason}{others}")
    title = f"{stages} stages, {microbatches} microbatches, {priced.words}"
    console.print(title, style="italic", soft_wrap=True)
    console.print(_table(rows))
    console.print(_EXPLANATION, style="dim", soft_wrap=True)
    for misfit in misfits:
        console.print(f"{misfit.name} is left out: {misfit.reason}", style="dim")


def compare(
    schedules: Mapping[str, Schedule], stages: int, microbatches: int, priced: Priced, memory_limit: float | None
) -> Iterator[Row | Misfit]:
    """Simulate every schedule for the same model."""
    for name, schedule in schedules.items():
        peak = inf
        try:
            table, costs = priced.plan(schedule, stages, microbatches)
            peak = max(peak_activations(table)) / table.placement.chunks_per_stage
            if memory_limit is not None:
                check_memory(table, memory_limit)
        except ValueError as error:
            yield Misfit(name=name, reason=str(error), peak=peak)
            continue
        free, ticked = simulate(table, costs), simulate_ticks(table, costs)
        assert ticked.ticks is not None
        yield Row(
            name=name,
            chunks_per_stage=table.placement.chunks_per_stage,
            replicas=table.placement.replicas,
            split=table.split,
            makespan=free.makespan,
            idle_share=free.idle_share,
            inside_share=max(idle / (idle + work) for idle, work in zip(free.idle_inside, free.work, strict=True)),
            tick_idle_share=ticked.idle_share,
            ticks=ticked.ticks,
            peak=peak,
            transfers=sum(free.transfers.values()) / microbatches,
        )


def _table(rows: Sequence[Row]) -> RichTable:
    table = RichTable(header_style="bold underline", box=None, padding=(0, 2, 0, 0))
    table.add_column("schedule", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.name} *" if row.name == DEFAULT else row.name
        shape = (f"{row.chunks_per_stage:g}", f"{row.replicas}", "yes" if row.split else "")
        bubbles = (f"{share:.1%}" for share in (row.tick_idle_share, row.idle_share, row.inside_share))
        rest = (f"{row.makespan:g}", f"{row.ticks}", f"{row.peak:g}", f"{row.transfers:g}")
        table.add_row(name, *shape, *bubbles, *rest, style="bold" if row.name == DEFAULT else "")
    return table
