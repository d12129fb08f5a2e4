"""`jaxtrain schedule show` and `jaxtrain schedule compare`: look at pipeline schedules before running one.

jaxtrain schedule show ZBH1 --stages 4 --microbatches 8 --png zbh1.png
jaxtrain schedule show "Interleaved(chunks_per_stage=3)" --stages 4 --microbatches 8 --mode tick
jaxtrain schedule show my_table.txt
jaxtrain schedule compare --stages 8 --microbatches 32
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from jaxtrain.cli.schedule_catalog import parse
from jaxtrain.cli.schedule_compare import Misfit, Row, compare
from jaxtrain.pipeline.draw import grid
from jaxtrain.pipeline.simulator import Costs, Simulation, check_memory, simulate, simulate_ticks
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.validation import validate

DEFAULT = "PairedInterleaved"

_FILE_WIDTH = 120  # columns where the output is no terminal

_WAITING = ("waiting\nloop", "waiting\nfree", "waiting\ninside")
_COLUMNS = ("chunks", "copies", "split", *_WAITING, "time\nfree", "ticks", "kept", "sent")

_EXPLANATION = """
*          the default
waiting    loop: in one compiled program, where neighbouring stages wait for each other every tick; share of all time
           free: each stage on its own, from the step's start to its end, as most papers count; share of all time
           inside: each stage on its own, between its first and its last action, the worst one, as zero-bubble papers
           count; stages start and end staggered, which is free only where the next step may begin staggered, too
time       of a step, each stage on its own, in units of the costs (those of a whole stage)
kept       most activations on a stage, in microbatches' passes through one stage
sent       messages between stages for each microbatch, forward and backward"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="draw one schedule and print its figures")
    show.add_argument("schedule", help="a schedule, as `ZBH1` or `Interleaved(chunks_per_stage=3)`, or a table file")
    show.add_argument(
        "--mode", choices=("free", "tick"), default="free", help="each stage on its own, or one compiled loop"
    )
    show.add_argument("--memory-limit", type=float, help="most microbatches' activations that a stage may keep")
    show.add_argument("--png", type=Path, help="write a picture")
    show.add_argument("--svg", type=Path, help="write a picture")
    show.add_argument("--save", type=Path, help="write the table as text, to edit and show again")
    _add_shape(show, required=False)
    _add_shape(actions.add_parser("compare", help="all schedules in one table"), required=True)


def run(arguments: argparse.Namespace) -> int:
    console = Console(emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _FILE_WIDTH)
    if arguments.action == "compare":
        _compare(console, arguments)
    else:
        _show(console, arguments)
    return 0


def _add_shape(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--stages", type=int, required=required, help="pipeline stages")
    parser.add_argument("--microbatches", type=int, required=required, help="microbatches of a step")
    help = "time of F, B and W on a whole stage, and of a transfer; default 1,1,1,0"
    parser.add_argument("--costs", type=_costs, metavar="F,B,W[,TRANSFER]", help=help)


def _costs(text: str) -> Costs:
    try:
        forward, backward, weight, *rest = [float(word) for word in text.split(",")]
        (transfer,) = rest or [0.0]
        return Costs(forward=forward, backward=backward, weight=weight, transfer=transfer)
    except ValueError:
        rule = "must be three or four numbers, such as 1,1.4,0.6: F, B and W above 0, and a transfer"
        raise argparse.ArgumentTypeError(f"`{text}` {rule}") from None


def _show(console: Console, arguments: argparse.Namespace) -> None:
    table = _table(arguments)
    if arguments.memory_limit is not None:
        check_memory(table, arguments.memory_limit)
    costs = (arguments.costs or Costs()).spread(table)
    free, ticked = simulate(table, costs), simulate_ticks(table, costs)
    shown = free if arguments.mode == "free" else ticked
    letters = console.color_system not in ("256", "truecolor")  # with fewer colours the units look alike
    console.print(Text(_title(arguments, table) + "\n", style="bold"))
    console.print(grid(table, shown, width=console.width, letters=letters), soft_wrap=True)
    console.print(_figures(table, free, ticked))
    for path in filter(None, (arguments.png, arguments.svg)):
        from jaxtrain.pipeline.picture import save  # matplotlib takes half a second to import

        save(table, shown, path, title=f"{_title(arguments, table)}: {shown.idle_share:.1%} of the time waiting")
    if arguments.save:
        arguments.save.write_text(table.dump())


def _table(arguments: argparse.Namespace) -> Table:
    path = Path(arguments.schedule)
    if path.is_file():
        return validate(Table.load(path.read_text()))
    if path.suffix and "(" not in path.name:
        raise ValueError(f"{path}: there is no such table file, and no schedule of that name")
    schedule = parse(arguments.schedule)
    if arguments.stages is None or arguments.microbatches is None:
        raise ValueError("a schedule is drawn for a size: give --stages and --microbatches, such as 4 and 8")
    if arguments.costs:
        schedule = schedule.tuned(arguments.costs)
    return schedule.table(arguments.stages, arguments.microbatches)


def _title(arguments: argparse.Namespace, table: Table) -> str:
    chunks = table.placement.chunks
    return f"{arguments.schedule}, {len(table.stages)} stages, {chunks} chunks, {table.microbatches} microbatches"


def _figures(table: Table, free: Simulation, ticked: Simulation) -> RichTable:
    peaks = ", ".join(f"{peak / table.placement.chunks_per_stage:g}" for peak in free.peaks)
    inside = ", ".join(f"{round(idle, 6):g}" for idle in free.idle_inside)
    messages = free.transfers.values()
    figures = RichTable.grid(padding=(0, 2))
    figures.add_row("time of a step", f"{free.makespan:g} free-running, {ticked.makespan:g} in one compiled loop")
    figures.add_row("  waiting, of all time", _both(free.idle_share, ticked.idle_share))
    figures.add_row("  waiting, over the work", _both(free.overhead, ticked.overhead))
    figures.add_row("  waiting inside a stage's span", f"{inside}, by stage, free-running")
    figures.add_row("ticks of the loop", f"{ticked.ticks}")
    figures.add_row("most activations kept", f"{peaks} microbatches' passes through one stage, by stage")
    figures.add_row("weight copies", f"{table.placement.replicas}")
    figures.add_row("transfers", f"{sum(messages)}, at most {max(messages, default=0)} on a link")
    return figures


def _both(free: float, ticked: float) -> str:
    return f"{free:.1%} free-running, {ticked:.1%} in one compiled loop"


def _compare(console: Console, arguments: argparse.Namespace) -> None:
    costs, stages, microbatches = arguments.costs or Costs(), arguments.stages, arguments.microbatches
    found = list(compare(stages, microbatches, costs))
    rows = sorted((row for row in found if isinstance(row, Row)), key=lambda row: (row.tick_idle_share, row.peak))
    ratio = ":".join(f"{cost:g}" for cost in (costs.forward, costs.backward, costs.weight))
    console.print(_comparison(rows, f"{stages} stages, {microbatches} microbatches, F:B:W = {ratio}"))
    console.print(_EXPLANATION, style="dim", soft_wrap=True)
    for misfit in (row for row in found if isinstance(row, Misfit)):
        console.print(f"{misfit.name} is left out: {misfit.reason}", style="dim")


def _comparison(rows: Sequence[Row], title: str) -> RichTable:
    table = RichTable(title=title, title_justify="left", header_style="bold underline", box=None, padding=(0, 2, 0, 0))
    table.add_column("schedule", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row.name} *" if row.name == DEFAULT else row.name
        shape = (f"{row.chunks_per_stage:g}", f"{row.replicas}", "yes" if row.split else "")
        waits = (f"{share:.1%}" for share in (row.tick_idle_share, row.idle_share, row.inside_share))
        rest = (f"{row.makespan:g}", f"{row.ticks}", f"{row.peak:g}", f"{row.transfers:g}")
        table.add_row(name, *shape, *waits, *rest, style="bold" if row.name == DEFAULT else "")
    return table
