"""A look-up on a mesh moves ids and activations, and makes no activation whole of which devices keep a part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny import DECODER

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model, context_of
from jaxtrain.nn.param import merge
from jaxtrain.shapes import Batch
from jaxtrain.sharding import activation_spec, shardings


@pytest.mark.parametrize("rows", [8, 1])
def test_embedding_makes_no_activation_whole_and_reorders_no_devices(rows):
    """Of a batch, and of a prompt, which the devices do not divide. XLA warned of both."""
    graph, shapes, axes = abstract_model(DECODER)
    mesh, shape = MeshConfig(fsdp=4, tensor=2).build(), (rows, 16)

    def struct(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    model = jax.tree.map(struct, shapes, shardings(axes, shapes, mesh))
    of_batch = NamedSharding(mesh, activation_spec(("batch", "length"), shape, mesh))
    ids = struct(np.zeros(shape, np.int32), of_batch)

    def loss(params, ids):
        batch = Batch(ids, ids, jnp.ones(ids.shape), ids, ids)
        return jnp.sum(merge(graph, model._replace(params=params)).embed(batch.tokens, context_of(batch, None)) ** 2)

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(model.params, ids).compile().as_text()
    assert "all-gather" in text and "collective-permute" not in text
    assert f"f32[{rows},16,{DECODER.d_model}]" not in text
