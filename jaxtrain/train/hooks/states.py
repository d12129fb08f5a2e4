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
        """Lay the states out as `state` is; restore those that are not there yet, or begin them."""
        for hook in self._hooks:
            fresh = hook.initial_state(state)
            found = self._states.get(hook.name)
            if found is None and fresh:
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh)
                found = restore(hook.name, shapes)
            layout = jax.tree.map(lambda x: x.sharding, fresh)
            self._states[hook.name] = fresh if found is None else jax.device_put(found, layout)

    def after_step(self, run: RunView, state: TrainState) -> TrainState:
        for hook in self._hooks:
            state, self._states[hook.name] = hook.after_step(run, state, self._states[hook.name])
        return state

    def to_save(self) -> dict[str, ParamTree]:
        return {name: state for name, state in self._states.items() if state}

    def averages(self) -> dict[str, ParamTree]:
        """Return the parameters that hooks make in place of the model's, by hook."""
        averages = {hook.name: hook.averaged_params(self._states[hook.name]) for hook in self._hooks}
        return {name: params for name, params in averages.items() if params is not None}
