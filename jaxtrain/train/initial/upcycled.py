"""Sparse upcycling: the weights of a dense model as those of a mixture of experts.

Komatsuzaki et al. (2022), arXiv:2212.05055. Every expert begins as a copy of the dense layer, and the router at random.
A token's weights add up to 1, so the mixture computes what the dense layer did.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxtrain.axes import EXPERTS
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import apart, in_stacks, of_stack, regrouped, together
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.shapes import ModelState
from jaxtrain.train.initial.base import Initial
from jaxtrain.train.initial.taken_over import layout
from jaxtrain.train.state import initial_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Upcycled(Initial):
    """`weights` of a dense model, whose feed-forward layers become the experts of the model's mixtures.

    The dense model is that of the run with the expert in place of each mixture. The new model computes the same, as
    long as no token is dropped.
    """

    weights: Initial
    paper: ClassVar[str] = "arXiv:2212.05055"

    def check(self, config: DecoderConfig) -> None:
        source = dense(config)
        with _of_dense():
            self.weights.check(source)

    def __call__(self, config: DecoderConfig, mesh: Mesh, key: Key[Array, ""]) -> ModelState:
        source = dense(config)
        with _of_dense():
            model = self.weights(source, mesh, key)
        stacks = {name: (of_stack(model, name), source.stacks[name], own) for name, own in config.stacks.items()}
        model = in_stacks(model, {name: regrouped(*of_both) for name, of_both in stacks.items()})
        shapes = abstract_model(config).shapes
        mixtures = {
            ("stacks", stack, "blocks", position, "mlp")
            for stack, (blocks, _) in config.stacks.items()
            for position, block in enumerate(blocks)
            if isinstance(block.mlp, MixtureConfig)
        }

        def copied(model: ModelState, key: Key[Array, ""]) -> ModelState:
            theirs, ours = flatten_dict(together(model)), flatten_dict(together(initial_model(config, key)))
            for path, leaf in ours.items():
                layer, inner = path[:5], path[5:]
                if layer in mixtures and inner[:1] == (EXPERTS,):
                    one = theirs[(*layer, *inner[1:])]  # [repeats, ...]
                    ours[path] = jnp.broadcast_to(one[:, None], leaf.shape)
                elif layer not in mixtures:
                    ours[path] = theirs[path]
            return apart(unflatten_dict(ours), shapes)

        with jax.set_mesh(mesh):
            return jax.jit(copied, out_shardings=layout(config, mesh))(model, key)


@contextlib.contextmanager
def _of_dense() -> Iterator[None]:
    """Say in the errors of the weights which model they should be of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"initial=Upcycled(...): {error}; the dense model has the expert in place of each mixture, so make the "
            "expert (mlp.expert) the layer of these weights"
        ) from error


def dense(config: DecoderConfig) -> DecoderConfig:
    """Return the model with the expert in place of each mixture.

    Raises:
        ValueError: there is no mixture, or one with copies of a layer as its experts is not that layer.
    """
    if not any(isinstance(block.mlp, MixtureConfig) for block in config.blocks):
        raise ValueError("initial=Upcycled(...): the model has no mixture of experts; give a block one (mlp)")
    if config.sharing:
        raise ValueError(f"model.sharing={config.sharing!r}: shared experts cannot be upcycled; leave it out")
    for name, block in config.named_blocks.items():
        if isinstance(block.mlp, MixtureConfig):
            _check_adds_to_one(f"model.{name}.mlp", block.mlp)

    def plain(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
        return tuple(
            dataclasses.replace(block, mlp=block.mlp.expert) if isinstance(block.mlp, MixtureConfig) else block
            for block in blocks
        )

    return dataclasses.replace(config, first=plain(config.first), pattern=plain(config.pattern))


def _check_adds_to_one(key: str, mixture: MixtureConfig) -> None:
    """Raise ValueError where equal experts are not worth one of them."""
    wanted = {"renormalise": True, "scale": 1.0, "shared": None, "zero_experts": 0}
    for name, value in wanted.items():
        if (found := getattr(mixture, name)) != value:
            raise ValueError(
                f"{key}.{name}={found!r}: with it, copies of a dense layer add up to something else; for "
                f"initial=Upcycled(...) set it to {value!r}"
            )
    if mixture.top_k == 1:
        raise ValueError(
            f"{key}.top_k=1: with renormalise=True the one expert of a token has weight 1, so no gradient reaches the "
            "router; for initial=Upcycled(...) take at least 2"
        )
    if mixture.selection.most(mixture.routed, mixture.top_k) != mixture.top_k:
        raise ValueError(
            f"{key}.selection={mixture.selection!r}: a token may have no expert, and the dense layer is lost for it; "
            "for initial=Upcycled(...) take TopK()"
        )
