"""A search for the order of layers: Zhou et al. (2023, Brainformers), arXiv:2306.00008, section 3.

Evolution with aging, Real et al. (2019), arXiv:1802.01548: a parent is the best of a sample, its child differs in one
layer, and the oldest of the population makes room. Orders that cost more than the budget, such as the time of a step of
the model to beat, are not tried. What an order is worth is for the caller to say, as by training a small model.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable

SAMPLE = 4  # of the population, whose best is the parent


def best_order(
    letters: str,
    length: int,
    *,
    loss: Callable[[str], float],
    cost: Callable[[str], float],
    budget: float,
    tries: int,
    population: int = 16,
    seed: int = 0,
) -> str:
    """Return the order with the least loss of those that were tried, each of which costs at most the budget.

    `loss` is called once for an order, and for at most `tries` of them. Where there are no more, all are tried.

    Raises:
        ValueError: no order of one letter again and again is cheap enough, or there is nothing to choose from.
    """
    if not letters:
        raise ValueError(f"{letters=}: give at least one")
    for name, number in (("length", length), ("tries", tries), ("population", population)):
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    choose = random.Random(seed)
    start = min((letter * length for letter in letters), key=cost)
    if cost(start) > budget:
        raise ValueError(f"budget={budget}: the cheapest order, {start}, costs {cost(start)}; give at least that")
    if len(letters) ** length <= tries:
        every = map("".join, itertools.product(letters, repeat=length))
        return min((order for order in every if cost(order) <= budget), key=loss)
    known = {start: loss(start)}
    alive = deque([start], maxlen=population)
    for _ in range(100 * tries):  # children that are known or cost too much are no try
        if len(known) >= tries:
            break
        parent = min(choose.sample(list(alive), min(SAMPLE, len(alive))), key=known.__getitem__)
        child = _mutated(parent, letters, choose)
        if cost(child) > budget:
            continue
        if child not in known:
            known[child] = loss(child)
        alive.append(child)
    return min(known, key=known.__getitem__)


def _mutated(order: str, letters: str, choose: random.Random) -> str:
    """Return the order with another letter in one place, or with two places exchanged."""
    first, second = choose.randrange(len(order)), choose.randrange(len(order))
    changed = list(order)
    if choose.random() < 0.5:
        changed[first], changed[second] = changed[second], changed[first]
    else:
        changed[first] = choose.choice(letters)
    return "".join(changed)
