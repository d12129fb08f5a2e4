"""Tables of pipeline schedules.

Silently wrong: the table, lowered to the program of one compiled loop and interpreted in plain numpy, computes another
loss or other gradients than one microbatch after the other through the chunks.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from fuzzed import mutations
from fuzzed.case import Case
from jaxtrain.cli.schedule_catalog import parse
from jaxtrain.pipeline.lower import lower
from jaxtrain.pipeline.simulator import Costs, simulate
from jaxtrain.pipeline.table import Table
from jaxtrain.pipeline.table_file import read

sys.path.append(str(Path(__file__).parents[2] / "tests" / "pipeline"))
from tick_interpreter import Gradients, Model, run, sequential

SIZES = (("GPipe", 2, 2), ("ZBH1", 3, 4), ("Chimera", 4, 4), ("Interleaved", 2, 4), ("VHalf", 2, 4))
TORCH = Path(__file__).parents[2] / "tests" / "golden" / "torch" / "schedules"
NUMBERS = ("0", "1", "2", "3", "7", "99", "10000000000", "9" * 5000, "-1", "²", "٣", "1.0", "", "F0.0")


def files(random: Random, folder: Path) -> Iterator[Case]:
    tables = [parse(name).table(stages, microbatches).dump() for name, stages, microbatches in SIZES]
    tables += [path.read_text() for path in sorted(TORCH.glob("*_2_*.csv"))]
    for text in tables:
        yield _table(folder / "table.txt", "valid", text, valid=True)
    while True:
        damage = random.choice((mutations.text, mutations.text, mutations.word, _other_number))
        yield _table(folder / "table.txt", *damage(random, random.choice(tables)))


def _table(path: Path, what: str, text: str, *, valid: bool = False) -> Case:
    def attempt() -> Table:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        table = read(path)
        simulate(table, Costs())
        return table

    return Case("table", what, attempt, _computes_another, (path.name,), valid)


def _computes_another(table: Table) -> str | None:
    model = Model.random(table.placement.chunks, table.microbatches)
    try:
        found = run(lower(table), model)
    except (AssertionError, IndexError) as error:  # a program that breaks its own promises
        return f"its program cannot run: {error}"
    for name, own, meant in zip(Gradients._fields, found, sequential(model), strict=True):
        if not np.allclose(own, meant, rtol=1e-9, atol=1e-11):
            return f"{name} of another"
    return None


def _other_number(random: Random, text: str) -> mutations.Damaged[str]:
    return mutations.number(random, text, NUMBERS)
