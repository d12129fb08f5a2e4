"""Averages of the weights over training. Training itself does not use them: only evaluation and export do."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtrain.shapes import ParamTree
from jaxtrain.train.hooks.base import AVERAGING, Hook, RunView, check_interval
from jaxtrain.train.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentialMovingAverage(Hook):
    """a <- decay a + (1 - decay) w after every step, in float32, starting from the initial weights.

    Polyak and Juditsky (1992); in the form of Tarvainen and Valpola (2017), arXiv:1703.01780, eq. 1.
    """

    decay: float = 0.999
    order: ClassVar[int] = AVERAGING
    copies: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv:1703.01780"

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay}: must be in [0, 1)")

    @property
    def name(self) -> str:
        return "ema"

    def initial_state(self, state: TrainState) -> ParamTree:
        return _copy(state.params)  # a copy, because the step donates the parameters

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        return state, _move(hook_state, state.params, self.decay)

    def averaged_params(self, hook_state: ParamTree) -> ParamTree:
        return hook_state


@dataclass(frozen=True, kw_only=True, slots=True)
class LatestWeightAverage(Hook):
    """The mean of the weights at the last `window` multiples of `every_steps`, kept in host memory.

    Kaddour (2022), arXiv:2209.14981.
    """

    every_steps: int
    window: int = 6
    order: ClassVar[int] = AVERAGING
    on_host: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:2209.14981"

    def __post_init__(self):
        check_interval(self)
        if self.window < 1:
            raise ValueError(f"window={self.window}: must be at least 1")

    @property
    def name(self) -> str:
        return "lawa"

    @property
    def copies(self) -> int:
        return self.window

    def initial_state(self, state: TrainState) -> ParamTree:
        queue = [_to_host(_copy(state.params)) for _ in range(self.window)]
        return {"queue": queue, "filled": jnp.zeros_like(state.step)}

    def after_step(self, run: RunView, state: TrainState, hook_state: ParamTree) -> tuple[TrainState, ParamTree]:
        if run.step % self.every_steps:
            return state, hook_state
        queue = [*hook_state["queue"][1:], _to_host(_copy(state.params))]
        return state, {"queue": queue, "filled": jnp.minimum(hook_state["filled"] + 1, self.window)}

    def averaged_params(self, hook_state: ParamTree) -> ParamTree | None:
        filled = int(hook_state["filled"])
        if filled == 0:
            return None
        newest = hook_state["queue"][-filled:]
        total = functools.reduce(
            lambda total, params: _add(total, _to_device(params)), newest[1:], _to_device(newest[0])
        )
        return jax.tree.map(lambda x: x / filled, total)


@jax.jit
def _copy(params: ParamTree) -> ParamTree:
    return jax.tree.map(jnp.copy, params)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
def _move(average: ParamTree, params: ParamTree, decay: float) -> ParamTree:
    return jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, average, params)


@functools.partial(jax.jit, donate_argnums=0)
def _add(total: ParamTree, params: ParamTree) -> ParamTree:
    return jax.tree.map(jnp.add, total, params)


def _to_host(params: ParamTree) -> ParamTree:
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), params)


def _to_device(params: ParamTree) -> ParamTree:
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), params)
