"""What families differ in has the same loss and gradient on any mesh and in the pipeline, and costs nothing unused."""

import functools

import jax
from every_option import ALL, BY_NAME
from pipelined_decoder import pipelined, task, unpipelined
from tiny import variant
from tolerances import SAME_GRADIENT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.heads import ScaledHead
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.masks import SlidingWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.train.gradients import Accumulate

ROWS = 8


def test_loss_and_gradient_are_the_same_on_a_mesh():
    loss, *arguments = task(ALL, ROWS)
    with jax.set_mesh(MeshConfig(fsdp=2, context=2, tensor=2).build()):
        found = jax.jit(functools.partial(Accumulate(), loss))(*arguments)
    assert_close(tuple(found), tuple(unpipelined(ALL, ROWS)), SAME_GRADIENT)


def test_loss_and_gradient_are_the_same_in_a_pipeline():
    """With attention in regions within those of the stages, and B and W apart."""
    found = pipelined(BY_NAME, ROWS, ZBH1(), 2, MeshConfig(stage=2, fsdp=2, tensor=2))
    assert_close(found, unpipelined(ALL, ROWS), SAME_GRADIENT)


def _program(config) -> str:
    loss, *arguments = task(config, ROWS)
    return jax.jit(functools.partial(Accumulate(), loss)).lower(*arguments).as_text()


def test_options_that_change_nothing_cost_nothing():
    """The neutral values of all options compile to the program of a decoder that does not name them."""
    plain = variant()
    (block,) = plain.pattern
    named = BlockConfig(
        mixer=AttentionConfig(
            heads=4, kv_heads=2, head_dim=8, mask=SlidingWindow(window=9), scores=Scores(scale=8**-0.5)
        ),
        mlp=GatedMLPConfig(hidden=64, bias=False),
    )
    assert named.mixer != block.mixer
    assert _program(variant(pattern=(named,))) == _program(plain)
    assert _program(variant(head=ScaledHead(scale=2.0, linear=Dense()))) != _program(plain)
