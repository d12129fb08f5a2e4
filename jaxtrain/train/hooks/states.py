"""The hooks of a run and what they carry from step to step."""

from collections.abc import Callable

import jax

from jaxtrain.shapes import ParamTree
from jaxtrain.train.hooks.base import Hook, RunView
from jaxtrain.train.state import TrainState

Restore = Callable[[str, ParamTree], ParamTree | None]  # (hook's name, shapes and layout) -> what was saved, if it was


class HookStates:
    """Calls the hooks in their order and keeps each one's state."""

    def __init__(self, hooks: tuple[Hook, ...]):
        self._hooks = sorted(hooks, key=lambda hook: hook.order)
        self._states: dict[str, ParamTree] = {}

    def enter(self, state: TrainState, restore: Restore) -> None:
        """Lay the states of hooks out as `state` is. Restore those that are not there yet, or else create them."""
        for hook in self._hooks:
            initial = hook.initial_state(state)
            current = self._states.get(hook.name)
            if current is None and initial:
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), initial)
                current = restore(hook.name, shapes)
            layout = jax.tree.map(lambda x: x.sharding, initial)
            self._states[hook.name] = initial if current is None else jax.device_put(current, layout)

    def after_step(self, run: RunView, state: TrainState) -> TrainState:
        for hook in self._hooks:
            state, self._states[hook.name] = hook.after_step(run, state, self._states[hook.name])
        return state

    def end(self) -> str | None:
        """Return why a hook ends the run now; None if none does."""
        reasons = (hook.ends(self._states[hook.name]) for hook in self._hooks)
        return next((reason for reason in reasons if reason is not None), None)

    def to_save(self) -> dict[str, ParamTree]:
        return {name: state for name, state in self._states.items() if state}

    def averages(self) -> dict[str, ParamTree]:
        """Return the averaged parameters that hooks give in place of the model's, by the name of the hook."""
        averages = {hook.name: hook.averaged_params(self._states[hook.name]) for hook in self._hooks}
        return {name: params for name, params in averages.items() if params is not None}
