"""All schedules, found by importing every module of `schedules/`, so that adding a schedule takes only a new file.

A schedule is written as text with its parameters, `Interleaved(chunks_per_stage=3)` or `TwoBP(schedule=GPipe)`, in the
form of a value of `--set`. The text is parsed, never evaluated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_object import Reader
from jaxtrain.cli.config_place import nodes
from jaxtrain.cli.config_tree import Node, Slot, build, new_node
from jaxtrain.cli.config_types import subclasses
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.record.literal import shorten
from jaxtrain.record.walk import config_fields

EXAMPLES = "`PairedInterleaved` or `Interleaved(chunks_per_stage=3)`"


def all_schedules() -> dict[str, type[Schedule]]:
    """Return every schedule class by name, except those with a required parameter, such as the file of a table."""
    found = sorted(subclasses(Schedule).items())
    return {name: schedule for name, schedule in found if not _required(new_node(schedule, {}, name))}


def parse(text: str, import_from: Sequence[str | Path] = ()) -> Schedule:
    """Build the schedule that the text names, with the given parameters and defaults for the others.

    Raises:
        ValueError: there is no such schedule or parameter, or a value is of the wrong type or out of range.
    """
    text, origin = text.strip(), f"`{shorten(text.strip())}`"
    try:
        tree = Reader(Imports(import_from), origin).read(text, Slot("schedule", Schedule), [Schedule])
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    if not isinstance(tree, Node):
        raise ValueError(f"{origin} is no schedule; write {EXAMPLES}")
    for at, node in nodes(tree, "schedule"):
        for missing in _required(node):
            raise ValueError(f"{origin}: {at}={node.cls.__name__} needs `{missing}`; write {missing}=...")
    return cast(Schedule, build(tree, {}))  # `read` has checked that the node fits its slot


def _required(node: Node) -> list[str]:
    """Return the parameters that have no default and were not given."""
    return [name for name in config_fields(node.cls) if name not in node.children]
