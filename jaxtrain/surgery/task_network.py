"""The network of one task, out of a model whose experts are chosen by task: Kudugunta et al. (2021), arXiv:2110.03742.

It has the experts of that task alone, so it is a small model without routing. The weights by which they are added up
are those that the model gave them, so its logits are the same bit for bit.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.models.decoder import Decoder, DecoderConfig, abstract_model
from jaxtrain.models.stacks import Stack
from jaxtrain.models.trees import of_stack, regrouped
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
        ValueError: the model has no such task, experts are weighed by more than the task, or repeats share them.
    """
    if config.task_count is None:
        raise ValueError(f"task={task}: no layer of this model chooses experts by task")
    if not 0 <= task < config.task_count:
        raise ValueError(f"task={task}: the model has tasks 0 to {config.task_count - 1}")
    if config.trainable != Everything():
        raise ValueError(f"task={task}: the model trains a part of its weights; give it trainable=Everything() first")
    if config.sharing:
        raise ValueError(
            f"task={task}: repeats share experts, model.sharing={config.sharing!r}, and each may choose others; "
            "only models without sharing have networks of tasks"
        )
    decoder: Decoder = merge(abstract_model(config).graph, model)
    found = {name: _stack_of_task(decoder, name, of_stack(model, name), task) for name in config.stacks}
    blocks = {name: stack.blocks for name, (stack, _) in found.items()}
    first = blocks["first"] * config.stacks["first"].repeats if config.first else ()
    small = dataclasses.replace(config, first=first, pattern=blocks["blocks"])
    stacks = {name: regrouped(arrays, stack, small.stacks[name]) for name, (stack, arrays) in found.items()}
    return small, ModelState(*(_with_stacks(tree, of, stacks) for of, tree in model._asdict().items()))


def _stack_of_task(decoder: Decoder, name: str, model: ModelState, task: int) -> tuple[Stack, ModelState]:
    """Return the blocks of a stack with the experts of a task, and their arrays."""
    graph, arrays = split(decoder.stacks[name])
    stack = decoder.config.stacks[name]
    blocks = list(stack.blocks)
    for index, block in enumerate(stack.blocks):
        if block.mlp.task_count is None:
            continue
        key = "pattern" if name == "blocks" else name
        small = _without_routing(block.mlp, f"model.{key}[{index}].mlp")

        def routed(repeat: ModelState, index: int = index) -> tuple[jax.Array, jax.Array]:
            layer = merge(graph, repeat).blocks[index].mlp
            assert isinstance(layer, Mixture)
            return _routed(layer, task)

        chosen_RE, weights_RE = map(np.asarray, jax.vmap(routed)(arrays))
        experts_RK = np.stack([np.flatnonzero(chosen) for chosen in chosen_RE])
        weights_RK = np.take_along_axis(weights_RE, experts_RK, axis=1)
        mixture = decoder.stacks[name].blocks[index].mlp
        assert isinstance(mixture, Mixture)
        removed = {*mixture.of_router, *(name for names in mixture.of_balances for name in names)}
        model = ModelState(*(_taken(tree, index, experts_RK, removed) for tree in model))
        model.params["blocks"][index]["mlp"]["weights"] = jnp.asarray(weights_RK)
        count = experts_RK.shape[1]
        blocks[index] = dataclasses.replace(block, mlp=dataclasses.replace(small, experts=count, top_k=count))
    return stack._replace(blocks=tuple(blocks)), model


def _with_stacks(tree: ParamTree, collection: str, stacks: Mapping[str, ModelState]) -> ParamTree:
    """Return a tree of a model with its stacks replaced, and without those that have no arrays of its kind."""
    filled = {name: own for name, stack in stacks.items() if (own := getattr(stack, collection))}
    return {name: leaf for name, leaf in (tree | {"stacks": filled}).items() if name != "stacks" or leaf}


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
