"""The tests run with the annotations of all functions of arrays checked, in jaxtrain and in its kernels."""

import importlib
import pkgutil

import checked
import jax
import jax.numpy as jnp
import jaxtrain_kernels
import jaxtyping
import pytest
from jaxtrain_kernels.cross_entropy import logits_of

import jaxtrain
from jaxtrain.nn.layer import dropout

UNCHECKED = {  # annotated with Protocols that are for type checkers alone
    "jaxtrain.objectives.distill.Distill._compared",
    "jaxtrain.train.gradients.base.Loss.of_model",
    "jaxtrain_kernels.block_quant.blockwise.decode",
    "jaxtrain_kernels.block_quant.blockwise.encode",
}
OF_EXTRAS = {"jaxtrain.cli.harness"}  # without arrays, and what it imports may not be installed


def test_a_wrong_shape_is_found_in_both_packages_and_in_traced_functions():
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(lambda x: logits_of(x, jnp.ones((7, 3)), None, None), jnp.ones((2, 4)))
    with pytest.raises(jaxtyping.TypeCheckError):
        dropout(jnp.ones(()), 0.1, None, site=0)


def test_no_more_functions_go_unchecked_than_are_named_here():
    for package in (jaxtrain, jaxtrain_kernels):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in OF_EXTRAS:
                importlib.import_module(module.name)
    assert checked.unchecked == UNCHECKED
