"""`jaxtrain schedule show` and `jaxtrain schedule compare`: look at pipeline schedules before running one.

jaxtrain schedule show ZBH1 --stages 4 --microbatches 8 --png zbh1.png
jaxtrain schedule show "Interleaved(chunks_per_stage=3)" --stages 4 --microbatches 8 --mode tick
jaxtrain schedule show my_table.txt
jaxtrain schedule compare --stages 8 --microbatches 32
jaxtrain schedule compare GPipe "Hanayo(waves=1)" --stages 4 --microbatches 8 --model configs/pipeline_tiny.gin
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jaxtrain.cli.schedule_catalog import all_schedules, parse
from jaxtrain.cli.schedule_compare import print_comparison
from jaxtrain.cli.schedule_costs import Priced, of_model, of_stage
from jaxtrain.pipeline.draw import grid
from jaxtrain.pipeline.placement import require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.schedules.from_file import FromFile
from jaxtrain.pipeline.simulator import Costs, Simulation, check_memory, simulate, simulate_ticks
from jaxtrain.pipeline.table import Table

_FILE_WIDTH = 120  # columns where the output is not a terminal


def run(arguments: argparse.Namespace) -> int:
    console = Console(emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    if arguments.model is not None:
        priced = of_model(arguments.model, arguments.import_from)
    else:
        priced = of_stage(arguments.costs or Costs())
    if arguments.action == "compare":
        _compare(console, arguments, priced)
    else:
        _show(console, arguments, priced)
    return 0


def _show(console: Console, arguments: argparse.Namespace, priced: Priced) -> None:
    pictures = {".png": arguments.png, ".svg": arguments.svg}
    for ending, path in pictures.items():
        if path and path.suffix != ending:
            flag = f"--{ending[1:]} {path}"
            raise ValueError(f"{flag}: the picture's name must end in {ending}; nearest {path.with_suffix(ending)}")
    schedule = _schedule(arguments.schedule, arguments.import_from)
    table, costs = priced.plan(schedule, *_size(arguments, schedule))
    if arguments.memory_limit is not None:
        check_memory(table, arguments.memory_limit)
    free, ticked = simulate(table, costs), simulate_ticks(table, costs)
    shown = free if arguments.mode == "free" else ticked
    letters = console.color_system not in ("256", "truecolor")  # with fewer colours F, B and W look alike
    drawn = grid(table, shown, width=console.width, letters=letters)
    console.print(Text(f"{_title(arguments, table)}, {priced.words}\n", style="bold"), soft_wrap=True)
    console.print(drawn, soft_wrap=True)
    console.print(_figures(table, free, ticked))
    for path in filter(None, pictures.values()):
        from jaxtrain.pipeline.picture import save  # matplotlib takes half a second to import

        save(table, shown, path, title=f"{_title(arguments, table)}: {shown.idle_share:.1%} bubble")
    if arguments.save:
        arguments.save.write_text(table.dump(), encoding="utf-8")


def _compare(console: Console, arguments: argparse.Namespace, priced: Priced) -> None:
    stages, microbatches = arguments.stages, arguments.microbatches
    require_positive(stages=stages, microbatches=microbatches)
    schedules = {text: _schedule(text, arguments.import_from) for text in arguments.schedules}
    schedules = schedules or {name: schedule() for name, schedule in all_schedules().items()}
    print_comparison(console, schedules, stages, microbatches, priced, arguments.memory_limit)


def _schedule(text: str, import_from: Sequence[str]) -> Schedule:
    path = Path(text)
    if path.is_file():
        return FromFile(path=text)
    if path.suffix and "(" not in text:
        raise ValueError(f"{path}: there is no such table file, and no schedule of that name")
    return parse(text, import_from)


def _size(arguments: argparse.Namespace, schedule: Schedule) -> tuple[int, int]:
    """Return stages and microbatches as given, or else as a table file has them."""
    stages, microbatches = arguments.stages, arguments.microbatches
    if own := schedule.size():
        stages, microbatches = (
            size if given is None else given for given, size in zip((stages, microbatches), own, strict=True)
        )
    if stages is None or microbatches is None:
        raise ValueError("a schedule is drawn for a size: give --stages and --microbatches, such as 4 and 8")
    return stages, microbatches


def _title(arguments: argparse.Namespace, table: Table) -> str:
    chunks = table.placement.chunks
    return f"{arguments.schedule}, {len(table.stages)} stages, {chunks} chunks, {table.microbatches} microbatches"


def _figures(table: Table, free: Simulation, ticked: Simulation) -> RichTable:
    peaks = ", ".join(f"{peak / table.placement.chunks_per_stage:g}" for peak in free.peaks)
    inside = ", ".join(f"{round(idle, 6):g}" for idle in free.idle_inside)
    messages = free.transfers.values()
    figures = RichTable.grid(padding=(0, 2))
    figures.add_row("time of a step", f"{free.makespan:g} free-running, {ticked.makespan:g} in one compiled loop")
    figures.add_row("  bubble, of all time", _both(free.idle_share, ticked.idle_share))
    figures.add_row("  bubble, over the work", _both(free.overhead, ticked.overhead))
    figures.add_row("  idle inside a stage's span", f"{inside}, by stage, free-running")
    figures.add_row("ticks of the loop", f"{ticked.ticks}")
    figures.add_row("peak activations", f"{peaks} microbatches' passes through one stage, by stage")
    figures.add_row("weight copies", f"{table.placement.replicas}")
    figures.add_row("transfers", f"{sum(messages)}, at most {max(messages, default=0)} on a link")
    return figures


def _both(free: float, ticked: float) -> str:
    return f"{free:.1%} free-running, {ticked:.1%} in one compiled loop"
