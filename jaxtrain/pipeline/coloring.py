"""Buffer slots by interval colouring: values that live at the same time get different slots, and no slot is wasted.

Greedy by start time is optimal for intervals: it uses exactly as many slots as values overlap at the worst moment.
"""

import heapq
from collections.abc import Hashable, Mapping
from typing import NamedTuple


class Lifetime(NamedTuple):
    """First and last moment at which a value is in its slot, both included."""

    first: int
    last: int


def color[Value: Hashable](lifetimes: Mapping[Value, Lifetime]) -> tuple[dict[Value, int], int]:
    """Return each value's slot, and how many slots there are."""
    slots: dict[Value, int] = {}
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    for value, (first, last) in sorted(lifetimes.items(), key=lambda item: item[1]):
        while busy and busy[0][0] < first:
            heapq.heappush(free, heapq.heappop(busy)[1])
        slots[value] = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (last, slots[value]))
    return slots, 1 + max(slots.values(), default=-1)
