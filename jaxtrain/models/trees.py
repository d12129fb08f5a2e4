"""The trees of a model: its stacks among them, and a teacher among what is frozen."""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxtrain.models.stacks import Stack
from jaxtrain.nn.layer import Sums
from jaxtrain.shapes import ModelState, ParamTree


def over_repeats(sums: Sums) -> Sums:
    """Return the sums of a stack from those of its repeats: terms are added, counts stay `[repeats, ...]`."""
    return Sums({name: jnp.sum(term, axis=0) for name, term in sums.terms.items()}, sums.counts)


def in_stacks(model: ModelState, stacks: dict[str, ModelState]) -> ModelState:
    """Return a model's trees with its stacks replaced. A collection for which the new stacks are empty is unchanged."""

    def replaced(tree: ParamTree, *of_stacks: ParamTree) -> ParamTree:
        filled = {name: stack for name, stack in zip(stacks, of_stacks, strict=True) if stack}
        return tree | {"stacks": filled} if filled else tree

    return ModelState(*map(replaced, model, *stacks.values()))


def of_stack(model: ModelState, name: str) -> ModelState:
    """Return the trees of one stack."""
    return ModelState(*(tree.get("stacks", {}).get(name, {}) for tree in model))


def regrouped(model: ModelState, before: Stack, after: Stack) -> ModelState:
    """Return the arrays of the stack `before` as those of the stack `after`, which has as many layers.

    Layers that differ in a linear or in their routing are repeats of one block where that is taken away, and blocks of
    their own where it is added.
    """

    def one(tree: ParamTree) -> ParamTree:
        layers: dict[tuple, list] = {}
        by_path = {path[1:]: leaf for path, leaf in flatten_dict(tree).items()}  # without `blocks`
        for layer in range(len(after.blocks) * after.repeats):
            repeat, position = divmod(layer, len(before.blocks))
            for (at, *rest), leaf in by_path.items():
                if at == position:
                    layers.setdefault(("blocks", layer % len(after.blocks), *rest), []).append(leaf[repeat])
        return unflatten_dict({path: jnp.stack(leaves) for path, leaves in layers.items()})

    return model if len(before.blocks) == len(after.blocks) else ModelState(*map(one, model))


def together(model: ModelState) -> ParamTree:
    """Return all trees of a model as one: that of its frozen form, or of a Hugging Face folder."""
    whole: dict = {}
    for tree in model:
        whole |= flatten_dict(tree)
    return unflatten_dict(whole)


def apart(tree: ParamTree, like: ModelState) -> ModelState:
    """Return the arrays of one tree in the trees in which `like` has those of the same paths."""
    arrays = flatten_dict(tree)
    return ModelState(*(unflatten_dict({path: arrays[path] for path in flatten_dict(of)}) for of in like))


def taught(model: ModelState, teacher: ModelState) -> ModelState:
    """Return the trees of a model with those of a teacher among what is frozen."""
    return model._replace(frozen={**model.frozen, "teacher": together(teacher)})
