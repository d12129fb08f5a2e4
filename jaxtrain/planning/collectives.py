"""Count what a compiled program moves between devices: collectives by kind, multiplied by the trip counts of loops.

Bytes are per device and step, by the logical size of the operation: an all-gather or reduce-scatter of N bytes (N: the
gathered result, or the whole input) is N, an all-reduce 2N (it is a reduce-scatter and an all-gather), an all-to-all
and a collective-permute N (what the device holds). The links carry less, by the factor (group - 1) / group.

Some collectives look different in the compiled text. The TPU compiler fuses an all-reduce with the slice of it that is
used (`all-reduce-scatter`): counted as a reduce-scatter. It spreads an asynchronous collective over several fusions
that share a channel: counted once. It turns matrix products into rings of permutes that gather or reduce as they go
(`windowed_dot_general`): counted as collective-permutes; a full ring moves the same N.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxtrain.planning.hlo import Computation, Instruction, Program, array_bytes, parse, shape

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One collective instruction of the program. `bytes` are of one execution, counted as the module says."""

    kind: str
    shape: str  # the result on one device, without layouts
    bytes: int
    group: int  # devices that take part together; of a permute, how many send
    times: int  # executions a step: the trip counts of the loops around it, multiplied
    unbounded: bool  # a loop around it has an unknown trip count, and counts as one round
    source: str  # the operation of the model it comes from, by the compiler's `op_name`
    computation: str  # that contains it in the compiled text
    name: str

    @property
    def total_bytes(self) -> int:
        return self.times * self.bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Collectives:
    """Every collective of a compiled program. Print it to see the totals and the largest movers."""

    items: tuple[Collective, ...]

    @property
    def total_bytes(self) -> int:
        return sum(item.total_bytes for item in self.items)

    def count(self, kind: str) -> int:
        """Return how many collectives of a kind a step executes."""
        return sum(item.times for item in self.items if item.kind == kind)

    def bytes(self, kind: str) -> int:
        """Return what the collectives of a kind move per step and device."""
        return sum(item.total_bytes for item in self.items if item.kind == kind)

    def table(self, rows: int = 20) -> str:
        """Return the totals by kind, then the largest movers; those of equal kind, shape and source share a row."""
        lines = [f"{'kind':<18}{'count':>8}{'GB moved':>12}"]
        lines += [f"{kind:<18}{self.count(kind):>8}{self.bytes(kind) / 1e9:>12.3f}" for kind in KINDS]
        lines += [f"{'all':<18}{sum(i.times for i in self.items):>8}{self.total_bytes / 1e9:>12.3f}", ""]
        lines += [f"{'GB moved':>9} {'count':>7} {'group':>5} {'kind':<18} shape, source"]
        groups = self._groups()
        lines += [_row(group) for group in groups[:rows]]
        if groups[rows:]:
            lines.append(f"{sum(i.total_bytes for g in groups[rows:] for i in g) / 1e9:>9.3f} in smaller ones")
        return "\n".join(lines)

    def _groups(self) -> list[list[Collective]]:
        groups: dict[tuple[str, str, str, bool], list[Collective]] = {}
        for item in self.items:
            groups.setdefault((item.kind, item.shape, item.source, item.unbounded), []).append(item)
        return sorted(groups.values(), key=lambda group: -sum(item.total_bytes for item in group))

    def __str__(self) -> str:
        return self.table()


def _row(group: list[Collective]) -> str:
    first, moved, count = group[0], sum(item.total_bytes for item in group), sum(item.times for item in group)
    times = f"{count}{'?' if first.unbounded else ''}"  # ?: a loop of unknown length, counted as one round
    return (
        f"{moved / 1e9:>9.3f} {times:>7} {first.group:>5} {first.kind:<18} {first.shape} {first.source or first.name}"
    )


def collectives(text: str) -> Collectives:
    """Return the collectives of a compiled program, from its text (`compiled.as_text()`)."""
    program = parse(text)
    return Collectives(items=tuple(item for run in program.runs() for item in _of_run(program, *run)))


def _of_run(program: Program, computation: Computation, times: int, unbounded: bool) -> Iterator[Collective]:
    fused_channels = set()
    for instruction in computation.instructions.values():
        if instruction.opcode == "fusion":
            for kind, body, found in _fused(program, instruction):
                channel = found.attribute(r"\bchannel_id=(\d+)")
                if channel is None or channel not in fused_channels:
                    fused_channels.add(channel)
                    source = _source(found) or _source(instruction)
                    yield _collective(_fused_kind(kind, body, found), found, source, computation.name, times, unbounded)
        elif alone := _kind(instruction):
            yield _collective(alone, instruction, _source(instruction), computation.name, times, unbounded)


def _source(instruction: Instruction) -> str:
    return instruction.attribute(r'\bop_name="([^"]*)"') or ""


def _kind(instruction: Instruction) -> str | None:
    kind = instruction.opcode.removesuffix("-start")  # the other half, -done, moves nothing more
    return {"ragged-all-to-all": "all-to-all"}.get(kind, kind if kind in KINDS else None)


def _fused(program: Program, fusion: Instruction) -> Iterator[tuple[str, Computation, Instruction]]:
    """Yield the collectives inside a fusion, each with its kind and the computation that contains it."""
    for name in fusion.called():
        body = program.computations[name]
        for instruction in body.instructions.values():
            if kind := _kind(instruction):
                yield kind, body, instruction
            elif instruction.opcode == "fusion":
                yield from _fused(program, instruction)


def _fused_kind(kind: str, body: Computation, found: Instruction) -> str:
    """Return the kind of a fused collective: an all-reduce of which a slice is used is a reduce-scatter."""
    users = [i for i in body.instructions.values() if found.name in i.operands]
    sliced = bool(users) and all(user.opcode == "dynamic-slice" for user in users)
    return "reduce-scatter" if kind == "all-reduce" and sliced else kind


def _collective(
    kind: str, found: Instruction, source: str, computation: str, times: int, unbounded: bool
) -> Collective:
    group = _group(found)
    return Collective(
        kind=kind,
        shape=shape(found.type),
        bytes=_moved_bytes(kind, found, group),
        group=group,
        times=times,
        unbounded=unbounded,
        source=source,
        computation=computation,
        name=found.name,
    )


def _moved_bytes(kind: str, found: Instruction, group: int) -> int:
    sizes = array_bytes(found.type)
    if found.opcode in ("all-gather-start", "collective-permute-start") or found.type.startswith("(("):
        # The type lists the operands, which stand in a tuple of their own where any operation is begun (GPU), then the
        # results, then scalars of the compiler.
        sizes = sizes[len(found.operands) : 2 * len(found.operands)]
    size = sum(sizes)
    match found.opcode.removesuffix("-start"):
        case "reduce-scatter":
            return size * group
        case "all-reduce":
            return size if kind == "reduce-scatter" else 2 * size
    return size


def _group(found: Instruction) -> int:
    """Return how many devices take part together; 1 if the text names no groups, which means all devices."""
    if pairs := found.attribute(r"\bsource_target_pairs=\{(.*?)\}\}"):
        return pairs.count("{")
    if axes := found.attribute(r"\breplica_groups=mesh\[([^\]]*)\]"):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
        over = found.attribute(r"\breplica_groups=mesh\[[^\]]*\] \{([^}]*)\}") or ""
        return math.prod(sizes[name] for name in re.findall(r"'([^']*)'", over))
    if iota := found.attribute(r"\breplica_groups=\[\d+,(\d+)\]<="):
        return int(iota)
    first = found.attribute(r"\breplica_groups=\{\{([\d,]*)\}")
    return first.count(",") + 1 if first else 1
