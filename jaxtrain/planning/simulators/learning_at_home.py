"""Experts on volatile peers. Ryabinin and Gusev (2020), "Learning@home", arXiv:2002.04013.

Experts lie on a grid. A router scores each axis of it, and a beam search over prefixes, such as the hash table of the
peers stores, finds the best living experts. A trainer sends each its inputs and takes the answers that come in time;
their weights are the softmax over those, and an input without answers passes by the residual alone. An expert takes a
gradient with the parameters that it has by then, which other trainers may have changed, and computes activations anew:
peers hold none. Experts are stored every so many updates. One whose peer dies comes back as it was last stored.

Left out: the hash table's own messages, and joining of peers that were never there.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxtrain.planning.simulators.clock import Clock, Stream
from jaxtrain.planning.simulators.linear import Linear
from jaxtrain.ranges import check_at_least_one, check_share

Place = tuple[int, ...]  # of an expert on the grid


class Found(NamedTuple):
    """An expert and its score: the sum of the scores of its coordinates."""

    place: Place
    score: float


def beam_search(scores: Sequence[np.ndarray], alive: np.ndarray, *, top_k: int, beam: int) -> list[Found]:
    """Return the best living experts, at most `top_k`, by their scores and then by their places.

    `scores` has a vector for each axis of the grid, `alive` says of each place whether an expert lives there. Prefixes
    without a living expert are not followed. With a beam of at least `top_k` the result over a full grid is exact.
    """
    prefixes = [Found((), 0.0)]
    for axis, own in enumerate(scores):
        lives = alive.any(axis=tuple(range(axis + 1, alive.ndim)))
        longer = [
            Found((*place, int(index)), score + float(own[index]))
            for place, score in prefixes
            for index in np.flatnonzero(lives[place])
        ]
        prefixes = sorted(longer, key=lambda found: (-found.score, found.place))[: max(beam, top_k)]
    return prefixes[:top_k]


class Expert(NamedTuple):
    """The arrays of an expert: y = relu(x up) down."""

    up: np.ndarray
    down: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.up, 0) @ self.down

    def moved(self, x: np.ndarray, dy: np.ndarray, rate: float) -> "Expert":
        """Return the expert after a step along its gradient. Its activations are computed anew."""
        hidden = np.maximum(x @ self.up, 0)
        dh = dy @ self.down.T * (hidden > 0)
        return Expert(self.up - rate * (x.T @ dh), self.down - rate * (hidden.T @ dy))


class Router(NamedTuple):
    """What trainers have themselves: a matrix of scores for each axis of the grid, and the classifier behind it."""

    keys: tuple[np.ndarray, ...]  # [D, size of the axis]
    output: np.ndarray  # [D, classes]


class History(NamedTuple):
    """The loss of each step in nats, the share of its requests that were answered, seconds, and what was learned."""

    losses: np.ndarray
    answered: np.ndarray
    seconds: float
    router: Router
    experts: dict[Place, Expert]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningAtHome:
    """A network of peers, one for each expert, and how trainers use it. `batch` gives inputs and classes of a step."""

    grid: tuple[int, ...]
    batch: Callable[[int], tuple[np.ndarray, np.ndarray]]
    width: int
    hidden: int
    classes: int
    top_k: int = 4
    trainers: int = 1
    rate: float = 0.1
    failure_rate: float = 0.0  # of requests: nothing comes back
    kill_rate: float = 0.0  # of steps: a peer dies, and comes back
    away_seconds: float = 5.0
    store_every: int = 10  # updates of an expert
    network: Linear = Linear(0.05, 1e-8)  # by bytes, one way
    compute: Linear = Linear(0.0, 1e-3)  # by inputs
    timeout_seconds: float = 1.0
    waits: bool = False  # for the updates of a step before the next
    seed: int = 0

    def __post_init__(self):
        check_at_least_one(self, "top_k", "trainers", "store_every", "width", "hidden", "classes")
        check_share(self, "failure_rate", "kill_rate")

    def start(self) -> "Network":
        """Return the network before its first step. The classifier is 0, all else is random."""
        draw, D = np.random.default_rng(self.seed), self.width

        def matrix(rows: int, columns: int) -> np.ndarray:
            return draw.normal(size=(rows, columns)) / rows**0.5

        router = Router(tuple(matrix(D, size) for size in self.grid), np.zeros((D, self.classes)))
        experts = {place: Expert(matrix(D, self.hidden), matrix(self.hidden, D)) for place in np.ndindex(*self.grid)}
        return Network(self, router, experts)


class _Step(NamedTuple):
    """A batch on its way: the living experts of each input, who was asked, and what has come back."""

    x: np.ndarray
    labels: np.ndarray
    chosen: list[list[Found]]
    asked: list[Place]
    answers: dict[Place, dict[int, np.ndarray]]  # by the input
    closed: list[bool]

    def rows(self, place: Place) -> list[int]:
        return [row for row, found in enumerate(self.chosen) if any(one.place == place for one in found)]


class Network:
    """The peers and the trainers in a simulation."""

    def __init__(self, config: LearningAtHome, router: Router, experts: dict[Place, Expert]):
        self.config, self.router, self.experts = config, router, dict(experts)
        self.stored, self.updates = dict(experts), dict.fromkeys(experts, 0)
        self.alive, self.clock = np.ones(config.grid, bool), Clock()
        self._peers = {place: Stream(self.clock) for place in experts}
        self._random = np.random.default_rng(config.seed + 1)
        self._losses: list[float] = []
        self._answered: list[float] = []
        self._begun = self._steps = 0

    def run(self, steps: int) -> History:
        """Make so many steps more, of all trainers together, and let all updates arrive."""
        self._steps += steps
        for _ in range(self.config.trainers):
            self._begin()
        self.clock.run()
        losses, answered = np.array(self._losses), np.array(self._answered)
        return History(losses, answered, self.clock.now, self.router, dict(self.experts))

    def kill(self, place: Place) -> None:
        """Let the peer of an expert die. The expert comes back on another, as it was last stored."""
        self.alive[place] = False
        self.clock.after(self.config.away_seconds, lambda: self._restore(place))

    def _restore(self, place: Place) -> None:
        self.experts[place], self.alive[place] = self.stored[place], True

    def _begin(self) -> None:
        """Begin a trainer's next step: choose living experts for each input, and ask them."""
        if self._begun == self._steps:
            return
        c, number = self.config, self._begun
        self._begun += 1
        if self._random.random() < c.kill_rate:
            self.kill(tuple(int(self._random.integers(size)) for size in c.grid))
        x, labels = c.batch(number)
        scores = [x @ keys for keys in self.router.keys]
        chosen = [
            beam_search([own[row] for own in scores], self.alive, top_k=c.top_k, beam=c.top_k) for row in range(len(x))
        ]
        step = _Step(x, labels, chosen, sorted({found.place for one in chosen for found in one}), {}, [False])
        for place in step.asked:
            if self._random.random() >= c.failure_rate:
                self._ask(step, place)
        self.clock.after(c.timeout_seconds, lambda: self._close(step))

    def _send(self, place: Place, x: np.ndarray, inputs: int, act: Callable[[], None]) -> float:
        """Send arrays to a peer, which acts when it has computed; a dead one does not. Return the time of the way."""
        way = self.config.network(inputs * x[0].nbytes)

        def compute() -> None:
            if self.alive[place]:
                self._peers[place].do(self.config.compute(inputs), lambda: act() if self.alive[place] else None)

        self.clock.after(way, compute)
        return way

    def _ask(self, step: _Step, place: Place) -> None:
        rows = step.rows(place)

        def answer() -> None:
            y = dict(zip(rows, self.experts[place](step.x[rows]), strict=True))
            self.clock.after(way, lambda: receive(y))

        def receive(y: dict[int, np.ndarray]) -> None:
            if not step.closed[0]:
                step.answers[place] = y
                if len(step.answers) == len(step.asked):
                    self._close(step)

        way = self._send(place, step.x, len(rows), answer)

    def _close(self, step: _Step) -> None:
        """Take the answers that have come: the loss, the trainer's own update, and a gradient for each who answered."""
        if step.closed[0]:
            return
        step.closed[0] = True
        c, count = self.config, len(step.x)
        mixed, weights = step.x.copy(), []
        for row, found in enumerate(step.chosen):
            there = [one for one in found if one.place in step.answers]
            weights.append(softmax(np.array([one.score for one in there])))
            for one, weight in zip(there, weights[row], strict=True):
                mixed[row] += weight * step.answers[one.place][row]
        probabilities = np.apply_along_axis(softmax, 1, mixed @ self.router.output)
        self._losses.append(float(-np.log(probabilities[np.arange(count), step.labels]).mean()))
        self._answered.append(len(step.answers) / max(len(step.asked), 1))
        dz = (probabilities - np.eye(c.classes)[step.labels]) / count
        dh = dz @ self.router.output.T
        of_keys = [np.zeros_like(keys) for keys in self.router.keys]
        of_experts: dict[Place, dict[int, np.ndarray]] = {place: {} for place in step.answers}
        for row, found in enumerate(step.chosen):
            there = [one for one in found if one.place in step.answers]
            against = np.array([step.answers[one.place][row] @ dh[row] for one in there])
            for one, weight, value in zip(there, weights[row], against, strict=True):
                of_experts[one.place][row] = weight * dh[row]
                for own, index in zip(of_keys, one.place, strict=True):
                    own[:, index] += weight * (value - weights[row] @ against) * step.x[row]
        keys = tuple(old - c.rate * new for old, new in zip(self.router.keys, of_keys, strict=True))
        self.router = Router(keys, self.router.output - c.rate * (mixed.T @ dz))
        self._update(step, of_experts)

    def _update(self, step: _Step, gradients: dict[Place, dict[int, np.ndarray]]) -> None:
        """Send the gradients, and begin the next step at once, or when they have been taken."""
        left = set(gradients)

        def take(place: Place) -> None:
            rows = list(gradients[place])
            dy = np.array([gradients[place][row] for row in rows])
            self.experts[place] = self.experts[place].moved(step.x[rows], dy, self.config.rate)
            self.updates[place] += 1
            if self.updates[place] % self.config.store_every == 0:
                self.stored[place] = self.experts[place]
            left.discard(place)
            if self.config.waits and not left:
                self._begin()

        for place, rows in gradients.items():
            self._send(place, step.x, 2 * len(rows), functools.partial(take, place))
        if not (self.config.waits and left):
            self._begin()


def softmax(scores: np.ndarray) -> np.ndarray:
    if not scores.size:
        return scores
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
