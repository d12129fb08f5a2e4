"""The network of one task, out of a model whose experts are chosen by task: Kudugunta et al. (2021), arXiv:2110.03742.

It has the experts of that task alone, so it is a small model without routing. The weights by which they are added up
are those that the model gave them, so its logits are the same bit for bit.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.models.decoder import Decoder, DecoderConfig, abstract_model
from jaxtrain.models.trees import of_stack
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.feed_forward.mixture import Mixture, MixtureConfig
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers import Fixed
from jaxtrain.nn.moe.selections import TopK
from jaxtrain.nn.param import merge, split
from jaxtrain.nn.trainable import Everything
from jaxtrain.shapes import ModelState, ParamTree


def of_task(config: DecoderConfig, model: ModelState, task: int) -> tuple[DecoderConfig, ModelState]:
    """Return the network of a task: its configuration and its arrays.

    Raises:
        ValueError: the model has no such task, or experts are weighed by more than the task.
    """
    if config.task_count is None:
        raise ValueError(f"task={task}: no layer of this model chooses experts by task")
    if not 0 <= task < config.task_count:
        raise ValueError(f"task={task}: the model has tasks 0 to {config.task_count - 1}")
    if config.trainable != Everything():
        raise ValueError(f"task={task}: the model trains a part of its weights; give it trainable=Everything() first")
    if config.sharing is not None:
        raise ValueError(
            f"model.sharing={config.sharing!r}: repeats that share their experts may choose different ones for a task; "
            "take a model without it"
        )
    decoder: Decoder = merge(abstract_model(config).graph, model)
    blocks = {"first": config.first, "blocks": config.pattern}
    stacks: dict[str, ModelState] = {}
    for name, keyed in (("first", "model.first"), ("blocks", "model.pattern")):
        if blocks[name]:
            blocks[name], stacks[name] = _of_stack(decoder, model, name, keyed, task)
    small = dataclasses.replace(config, first=blocks["first"], pattern=blocks["blocks"])
    trees = [{name: stack[kind] for name, stack in stacks.items()} for kind in range(len(model))]
    return small, ModelState(*map(_with_stacks, model, trees))


def _of_stack(
    decoder: Decoder, model: ModelState, name: str, key: str, task: int
) -> tuple[tuple[BlockConfig, ...], ModelState]:
    """Return the blocks of a stack and its arrays, with the experts of a task alone."""
    graph, arrays = split(decoder.stacks[name])
    pattern, found = list(decoder.config.stacks[name].blocks), of_stack(model, name)
    for index, block in enumerate(pattern):
        if block.mlp.task_count is None:
            continue
        small = _without_routing(block.mlp, f"{key}[{index}].mlp")

        def routed(repeat: ModelState, index: int = index) -> tuple[jax.Array, jax.Array]:
            layer = merge(graph, repeat).blocks[index].mlp
            assert isinstance(layer, Mixture)
            return _routed(layer, task)

        chosen_RE, weights_RE = map(np.asarray, jax.vmap(routed)(arrays))
        experts_RK = np.stack([np.flatnonzero(chosen) for chosen in chosen_RE])
        weights_RK = np.take_along_axis(weights_RE, experts_RK, axis=1)
        mixture = decoder.stacks[name].blocks[index].mlp
        assert isinstance(mixture, Mixture)
        removed = {*mixture.of_router, *(own for names in mixture.of_balances for own in names)}
        found = ModelState(*(_taken(tree, index, experts_RK, removed) for tree in found))
        found.params["blocks"][index]["mlp"]["weights"] = jnp.asarray(weights_RK)
        count = experts_RK.shape[1]
        pattern[index] = dataclasses.replace(block, mlp=dataclasses.replace(small, experts=count, top_k=count))
    return tuple(pattern), found


def _with_stacks(tree: ParamTree, own: dict[str, ParamTree]) -> ParamTree:
    """Return a tree of a model with stacks replaced, and without those where no block has arrays of its kind."""
    stacks = {name: stack for name, stack in (tree.get("stacks", {}) | own).items() if stack}
    return {name: leaf for name, leaf in (tree | {"stacks": stacks}).items() if name != "stacks" or leaf}


def _without_routing(layer: FeedForwardConfig, key: str) -> MixtureConfig:
    """Return the layer with the weights of its experts given. Raises ValueError where they depend on the token."""
    if not isinstance(layer, MixtureConfig):
        raise ValueError(f"{key}={layer!r}: only a mixture itself has a network of a task")
    if layer.router.reads_tokens or layer.zero_experts:
        raise ValueError(
            f"{key}: it weighs experts by the token, or has zero_experts; take router=@ByTask() or @Equal()"
        )
    changed = {"router": Fixed(), "selection": TopK(), "balances": (), "renormalise": False, "scale": 1.0}
    return dataclasses.replace(layer, experts=layer.top_k, **changed)  # type: ignore[arg-type]  # each has its type


def _routed(mixture: Mixture, task: int) -> tuple[jax.Array, jax.Array]:
    """Return 1 for the experts of a task and 0 for others, and their weights."""
    one = jnp.ones((1, 1), jnp.int32)
    context = TokenContext(one - 1, one, one - 1, one, tasks=one * task)
    routing = mixture.routing(mixture.scores(jnp.zeros((1, 1, 1)), context), context)
    return routing.chosen[0, 0], routing.weights[0, 0]


def _taken(tree: ParamTree, index: int, experts_RK: np.ndarray, removed: set[str]) -> ParamTree:
    """Return a tree of a stack with some experts of a block's mixture alone, and without the arrays of its routing."""
    mlp = tree.get("blocks", {}).get(index, {}).get("mlp")
    if mlp is None:
        return tree
    kept = {name: leaf for name, leaf in mlp.items() if name not in removed}
    if "experts" in kept:
        kept["experts"] = jax.tree.map(lambda leaf: jax.vmap(lambda x, e: x[e])(leaf, experts_RK), kept["experts"])
    own = {name: layer for name, layer in (tree["blocks"][index] | {"mlp": kept}).items() if layer}
    blocks = {number: block for number, block in (tree["blocks"] | {index: own}).items() if block}
    return {"blocks": blocks} if blocks else {}
