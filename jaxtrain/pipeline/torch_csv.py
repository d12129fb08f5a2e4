"""A table in the CSV form of torch.distributed.pipelining, which its schedules write with `_dump_csv`.

A row is a rank, here a stage. A cell is an action: torch's stage, here a chunk, what is computed, and the microbatch.

    torch   0F1   0I1   0W1   0B1   (0F1;3B0)OVERLAP_F_B
    here    F1.0  B1.0  W1.0  BW1.0  F1.0 BW0.3

An empty cell is idle time. It is left out, as are sends, receives, gathers and reductions (torch's form
"compute_comms"): when stages wait and exchange follows from the order of the actions, and the loop does it.
"""

import csv
import io
import re
from collections.abc import Iterator

from jaxtrain.pipeline.placement import Placement
from jaxtrain.pipeline.table import NUMBER, Action, Table, Unit, count_microbatches

_UNITS = {"F": Unit.FORWARD, "I": Unit.BACKWARD, "W": Unit.WEIGHT, "B": Unit.FUSED}
_COMPUTES = re.compile(rf"({NUMBER})([FIWB])({NUMBER})")
_MOVES = re.compile(rf"({NUMBER})(?:(?:SEND|RECV)_[FB]{NUMBER}|(?:UNSHARD|RESHARD|REDUCE_GRAD)(?:{NUMBER})?)")
_OVERLAPS = re.compile(r"\(([^()]*)\)OVERLAP_F_B")
_BEGINS = re.compile(r'[\s,"]*[(0-9]')


def is_torch_csv(text: str) -> bool:
    """Tell whether a text begins with a cell of this form. The text form of tables begins with a word."""
    return _BEGINS.match(text) is not None


def load_torch_csv(text: str) -> Table:
    """Parse the CSV form. The result is not validated: see `validation.validate`.

    Raises:
        ValueError: a cell is no action, a chunk is on two ranks or on none, or a rank or microbatch has no actions.
    """
    try:
        rows = list(csv.reader(io.StringIO(text.rstrip())))
    except csv.Error as error:
        raise ValueError(f"no CSV of a schedule: {error}") from None
    homes: dict[int, int] = {}
    stages = []
    for rank, cells in enumerate(rows):
        actions = []
        for number, cell in enumerate(cells, start=1):
            for chunk, action in _parts(f"rank {rank}, cell {number}", cell.strip()):
                if homes.setdefault(chunk, rank) != rank:
                    raise ValueError(
                        f"rank {rank}, cell {number}: `{cell.strip()}` is of stage {chunk}, which is on rank "
                        f"{homes[chunk]}; a stage has one rank"
                    )
                actions += [] if action is None else [action]
        if not actions:
            raise ValueError(f"rank {rank} has no actions; every row is a rank, with cells such as {rank}F0")
        stages.append(tuple(actions))
    if missing := set(range(len(homes))) - homes.keys():
        raise ValueError(
            f"stage {max(homes)} without stage {min(missing)}: they are numbered from 0, without gaps; "
            f"nearest {min(missing)}"
        )
    placement = Placement(stages=len(stages), homes=(tuple(homes[chunk] for chunk in range(len(homes))),))
    return Table(placement=placement, routes=(0,) * count_microbatches(stages), stages=tuple(stages))


def _parts(where: str, cell: str) -> Iterator[tuple[int, Action | None]]:
    """Yield the chunk and the action of each part of a cell; None for what is not computed."""
    overlapped = _OVERLAPS.fullmatch(cell)
    for part in overlapped[1].split(";") if overlapped else [cell] if cell else []:
        if match := _COMPUTES.fullmatch(part.strip()):
            yield int(match[1]), Action(_UNITS[match[2]], int(match[3]), int(match[1]))
        elif (match := _MOVES.fullmatch(part)) and not overlapped:
            yield int(match[1]), None
        else:
            raise ValueError(
                f"{where}: `{cell}` is no action; expected a stage, then F, I, W or B, then a microbatch, such as 2F0"
            )
