"""Read a table file: its text form, and proof that one compiled loop can run it."""

from itertools import pairwise
from pathlib import Path

from jaxtrain.pipeline.placement import Placement, require_even
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.validation import validate


def read(path: Path) -> Table:
    """Return the table of a file. ValueError names the file and the rule that it breaks."""
    try:
        table = validate(Table.load(path.read_text(encoding="utf-8")))
        _check_placement(table.placement)
        return table
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; `jaxtrain schedule show --save` writes them") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_placement(placement: Placement) -> None:
    """Raise where the loop's exchanges cannot carry a microbatch from chunk to chunk."""
    if placement.replicas > 1:
        require_even(placement.stages)
    for home in placement.homes:
        for chunk, (here, there) in enumerate(pairwise(home)):
            if (there - here) % placement.stages not in (0, 1, placement.stages - 1):
                raise ValueError(
                    f"chunks {chunk} and {chunk + 1} are on stages {here} and {there}: the loop exchanges with "
                    f"neighbours only; put consecutive chunks on one stage, on neighbours, or on the last and the first"
                )
