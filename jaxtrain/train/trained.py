"""The model of a run folder, for evaluation, generation and export."""

import jax
import optax
from jax.sharding import Mesh

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.optim.base import Optimizer, evaluation_params, transformation
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.train.checkpoint import Checkpoints, Retention
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Hook
from jaxtrain.train.hooks.base import AVERAGING
from jaxtrain.train.state import TrainState, abstract_state


def trained_model(
    folder: RunFolder,
    *,
    model: DecoderConfig,
    optimizer: Optimizer,
    hooks: tuple[Hook, ...],
    mesh: Mesh,
    weights: str | None = None,
    step: int | None = None,
    best: bool = False,
) -> tuple[int, ModelState]:
    """Return a step and its model, laid out over `mesh`: of the latest valid checkpoint, of `step`, or of the best.

    `weights` names a hook whose average to take ("ema", "lawa"); None takes the model's own.

    Raises:
        ValueError: the folder has no valid checkpoint, or none of that step, or no average of that name.
    """
    with Checkpoints(folder.checkpoints) as checkpoints:
        step = chosen_step(checkpoints, folder, hooks, step=step, best=best)
        averages = {hook.name: hook for hook in hooks if hook.order == AVERAGING}
        if weights is not None and weights not in averages:
            raise ValueError(f"weights={weights!r}: the run kept {', '.join(averages) or 'no averages'}; leave it out")
        _, _, axes = abstract_model(model)
        rate = optax.constant_schedule(0.0)  # only the shapes of the optimizer's state are needed
        tx = transformation(optimizer, rate, axes.params, clip_norm=None)
        target = abstract_state(model, tx, axes, mesh)
        trained = checkpoints.has_progress(step)
        if weights is None and not (trained and optimizer.averages):
            return step, checkpoints.restore_model(step, target.model)
        if trained:
            state = checkpoints.restore_state(step, target)
            params = (
                evaluation_params(optimizer, state.opt_state, state.params)
                if weights is None
                else _averaged_params(checkpoints, step, averages[weights], state)
            )
            if params is not None:
                return step, state.model._replace(params=params)
    raise ValueError(f"weights={weights!r}: {folder.path} kept no average of that name yet; leave it out")


def chosen_step(
    checkpoints: Checkpoints, folder: RunFolder, hooks: tuple[Hook, ...], *, step: int | None, best: bool
) -> int:
    """Return the step of the checkpoint to read. Raises ValueError where there is none."""
    retention = next((hook.saving.retention for hook in hooks if hook.saving), Retention())
    found = checkpoints.chosen(step, best=best, best_by=retention.best_by)
    if found is None:
        raise ValueError(f"{folder.path}: no finished checkpoint to read; train first, or wait for the first save")
    return found


def _averaged_params(checkpoints: Checkpoints, step: int, hook: Hook, state: TrainState) -> ParamTree | None:
    initial = hook.initial_state(state)
    layout = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), initial)
    hook_state = checkpoints.restore_hook(step, hook.name, layout)
    return None if hook_state is None else hook.averaged_params(hook_state)
