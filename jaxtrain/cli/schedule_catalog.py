"""All schedules, found by importing every module of `schedules/`, so that adding a schedule takes only a new file.

A schedule is written as text with its parameters, `Interleaved(chunks_per_stage=3)` or `TwoBP(schedule=GPipe)`
(one_object.py).
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtrain.cli.config_tree import new_node
from jaxtrain.cli.config_types import subclasses
from jaxtrain.cli.one_object import one_object, required
from jaxtrain.pipeline.schedules.base import Schedule

EXAMPLES = "`PairedInterleaved` or `Interleaved(chunks_per_stage=3)`"


def all_schedules() -> dict[str, type[Schedule]]:
    """Return every schedule class by name, except those with a required parameter, such as the file of a table."""
    found = sorted(subclasses(Schedule).items())
    return {name: schedule for name, schedule in found if not required(new_node(schedule, {}, name))}


def parse(text: str, import_from: Sequence[str | Path] = ()) -> Schedule:
    """Build the schedule that the text names, with the given parameters and defaults for the others.

    Raises:
        ValueError: there is no such schedule or parameter, or a value is of the wrong type or out of range.
    """
    return one_object(text, Schedule, "schedule", examples=EXAMPLES, import_from=import_from)
