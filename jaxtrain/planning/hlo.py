"""Read compiled HLO text: computations, instructions, array types, and how often each computation runs.

It reads only what counting needs: names, opcodes, operands, result types and the attributes that name other
computations. The text is what `compiled.as_text()` gives on CPU, GPU and TPU. The body of a loop runs as often as its
trip count says. That is the compiler's own note, if there is one (`known_trip_count`). Otherwise it is computed from
the loop's counter and condition. Left out: everything about layouts and schedules.
"""

import bisect
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_OPENING = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*\{$")
_NAMED = re.compile(r"^\s+(ROOT\s+)?%([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\]")
_UNBOUNDED = 2**40  # a loop of more rounds counts as one of unknown trip count

Scalar = int | bool | tuple | None  # what `_Frame` knows of a value: a number, a tuple of these, or nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    name: str
    opcode: str
    type: str  # of the result, as written
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses: the value of a constant, the number of a parameter
    attributes: str  # everything after the parentheses

    def attribute(self, pattern: str) -> str | None:
        """Return the first group of a pattern, or None if the attributes do not match it."""
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def required(self, pattern: str) -> str:
        """Return the first group of a pattern that the attributes must match."""
        if (found := self.attribute(pattern)) is None:
            raise ValueError(
                f"{self.opcode} {self.name} has no attribute {pattern!r}; the text is of no known compiler"
            )
        return found

    def called(self) -> tuple[str, ...]:
        """Return the computations this one calls: body of a loop or fusion, branches; not the condition of a loop."""
        branches = _BRANCHES.search(self.attributes)
        listed = [name.strip().lstrip("%") for name in branches[1].split(",")] if branches else []
        return (*_CALLED.findall(self.attributes), *listed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]  # by name, in the order of the text
    root: str


class Run(NamedTuple):
    """A computation that runs: how often a step, and whether a loop around it has an unknown trip count."""

    computation: Computation
    times: int
    unbounded: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    computations: dict[str, Computation]
    entry: str

    def runs(self) -> Iterator[Run]:
        """Yield every computation that runs, once for each instruction that calls it.

        A loop of unknown trip count counts as one round. Of a conditional every branch counts. Bodies of fusions and
        the scalar functions of reductions are not yielded: they belong to the instruction that calls them.
        """
        yield from self._runs(self.entry, (), 1, False)

    def _runs(self, name: str, arguments: tuple[Scalar, ...], times: int, unbounded: bool) -> Iterator[Run]:
        computation = self.computations[name]
        yield Run(computation, times, unbounded)
        frame = _Frame(self, computation, arguments)
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                start = frame.value(instruction.operands[0])
                trips, carried = _loop(self, instruction, start)
                inner = times * (1 if trips is None else trips)
                yield from self._runs(instruction.called()[0], (carried,), inner, unbounded or trips is None)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.called():
                    yield from self._runs(called, (), times, unbounded)


def parse(text: str) -> Program:
    """Parse the text of a compiled program.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: str | None = None
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if opening := _OPENING.match(line):
            name, lines = opening[2], []
            entry = name if opening[1] else entry
        elif name and line.startswith("}"):
            computations[name], name = _computation(name, lines), None
        elif name:
            lines.append(line)
    if entry is None:
        raise ValueError(f"text={text[:40]!r}...: no ENTRY computation; give the text of `compiled.as_text()`")
    return Program(computations=computations, entry=entry)


def array_bytes(type_text: str) -> tuple[int, ...]:
    """Return the bytes of each array of a type: one for an array, several for a tuple."""
    return tuple(_bytes(kind, dimensions) for kind, dimensions in _ARRAY.findall(_without_layouts(type_text)))


def shape(type_text: str) -> str:
    """Return a type without its layouts, `bf16[4096,11008]`."""
    return re.sub(r"/\*.*?\*/", "", _without_layouts(type_text))


def _without_layouts(type_text: str) -> str:
    return re.sub(r"\{[^}]*\}", "", type_text)


def _bytes(kind: str, dimensions: str) -> int:
    # The width of an element is the first number of its name: bf16, s32, f8e4m3fn, c64; pred has none and takes a byte.
    width = re.search(r"\d+", kind)
    bits = int(width[0]) if width else {"pred": 8}.get(kind, 0)
    count = 1
    for size in dimensions.split(",") if dimensions else ():
        count *= int(size)
    return -(-count * bits // 8)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        if named := _NAMED.match(line):
            instructions[named[2]] = _instruction(named[2], named[3])
            root = named[2] if named[1] else root
    return Computation(name=name, instructions=instructions, root=root)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end)
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing - 1]
    return Instruction(
        name=name,
        opcode=text[end:opening].strip(),
        type=text[:end],
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside=inside,
        attributes=text[closing:],
    )


def _closing(text: str, opening: int) -> int:
    """Return the position after the parenthesis that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"text={text[:40]!r}...: a parenthesis is not closed; the text of a compiled program is cut off")


def _loop(program: Program, loop: Instruction, start: Scalar) -> tuple[int | None, Scalar]:
    """Return the trip count of a loop (None: unknown), and the carried values that are the same in every round."""
    following = _result(program, loop.called()[0], (start,))
    if not isinstance(start, tuple) or not isinstance(following, tuple):
        start = following = ()
    carried = tuple(a if a == b else None for a, b in zip(start, following, strict=True))
    if noted := _TRIPS.search(loop.attributes):
        return int(noted[1]), carried
    condition = loop.required(r"\bcondition=%?([\w.\-]+)")

    def continues(rounds: int) -> Scalar:
        # Counters of compiled loops advance by a constant, so the first two rounds determine every other one.
        state = (_advanced(a, b, rounds) for a, b in zip(start, following, strict=True))
        return _result(program, condition, (tuple(state),))

    high = 1
    while continues(high) is True and high < _UNBOUNDED:
        high *= 2
    if continues(high) is not False:
        return None, carried
    return bisect.bisect_left(range(high), True, key=lambda rounds: continues(rounds) is False), carried


def _advanced(first: Scalar, second: Scalar, rounds: int) -> Scalar:
    """Return a counter after so many rounds, from its first two values; None if they are not known."""
    if isinstance(first, int) and isinstance(second, int):
        return first + rounds * (second - first)
    return None


_OPERATIONS = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}


class _Frame:
    """What is known of one call of a computation: integers, comparisons, and tuples with some known entries."""

    def __init__(self, program: Program, computation: Computation, arguments: tuple[Scalar, ...]):
        self.program, self.computation, self.arguments = program, computation, arguments
        self.known: dict[str, Scalar] = {}

    def value(self, name: str) -> Scalar:
        if name not in self.known:
            self.known[name] = self._evaluate(self.computation.instructions[name])
        return self.known[name]

    def _evaluate(self, instruction: Instruction) -> Scalar:
        match instruction.opcode:
            case "constant":
                return int(instruction.inside) if re.fullmatch(r"-?\d+", instruction.inside) else None
            case "parameter":
                number = int(instruction.inside)
                return self.arguments[number] if number < len(self.arguments) else None
            case "copy" | "bitcast" | "convert" | "reshape":
                return self.value(instruction.operands[0])
            case "tuple":
                return tuple(self.value(operand) for operand in instruction.operands)
            case "get-tuple-element":
                whole = self.value(instruction.operands[0])
                if not isinstance(whole, tuple) or not whole:
                    return None
                return whole[int(instruction.required(r"\bindex=(\d+)"))]
            case "add" | "subtract" | "multiply" | "compare":
                left, right = (self.value(operand) for operand in instruction.operands)
                operation = _OPERATIONS.get(instruction.attribute(r"\bdirection=(\w+)") or instruction.opcode)
                return None if operation is None or left is None or right is None else operation(left, right)
            case "fusion" | "call":
                arguments = tuple(self.value(operand) for operand in instruction.operands)
                return _result(self.program, instruction.called()[0], arguments)
        return None


def _result(program: Program, name: str, arguments: tuple[Scalar, ...]) -> Scalar:
    """Return what is known of the result of a call."""
    computation = program.computations[name]
    return _Frame(program, computation, arguments).value(computation.root)
