"""Read a table file, in the text form or in torch's CSV form, and prove that one compiled loop can run it."""

from pathlib import Path

from jaxtrain.pipeline.placement import require_even, require_neighbours
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.torch_csv import is_torch_csv, load_torch_csv
from jaxtrain.pipeline.validation import validate


def read(path: Path) -> Table:
    """Return the table of a file. ValueError names the file and the rule that it breaks."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a mark
        table = validate(load_torch_csv(text) if is_torch_csv(text) else Table.load(text))
        if table.placement.replicas > 1:
            require_even(table.placement.stages)
        require_neighbours(table.placement)
        return table
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8; `jaxtrain schedule show --save` writes them") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
