"""Checkpoints of earlier layouts restore; those of later ones are refused and left alone.

The golden was written by the code of layout 1: after one step of AdamW, with a moving average.
"""

import json
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from messages import refused
from runs import content
from tolerances import EXACT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import LearnedPositions
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import transformation
from jaxtrain.optim.schedules import Constant
from jaxtrain.surgery.checkpoint_item import open_params
from jaxtrain.surgery.layouts import as_saved
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.manifest import read_manifest
from jaxtrain.train.state import TrainState, abstract_state

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints" / "layout1.zip"
MODEL = DecoderConfig(
    vocab_size=16,
    d_model=8,
    repeats=2,
    max_length=8,
    norm=LayerNormConfig(),
    embedding=LearnedPositions(),
    pattern=(
        BlockConfig(
            mixer=AttentionConfig(heads=2, kv_heads=1, head_dim=4, biases=LINEARS), mlp=MLPConfig(hidden=12, bias=True)
        ),
    ),
)


@pytest.fixture
def layout_1(tmp_path) -> Path:
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def _target() -> TrainState:
    _, _, axes = abstract_model(MODEL)
    optimizer = AdamW(learning_rate=Constant(peak=1e-2))
    tx = transformation(optimizer, optimizer.learning_rate.build(1), axes.params, clip_norm=1.0)
    return abstract_state(MODEL, tx, axes, MeshConfig(fsdp=2, tensor=2).build(jax.devices()[:4]))


def _assert_is(tree, folder: Path, kind: str) -> None:
    with np.load(folder / "values.npz") as values:
        for path, leaf in jax.tree_util.tree_leaves_with_path(as_saved(tree, 1)):
            name = kind + jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_array_equal(leaf, values[name], err_msg=name)


def test_a_state_of_layout_1_restores_with_its_moments_and_averages(layout_1):
    with Checkpoints(layout_1 / "checkpoints") as checkpoints:
        assert checkpoints.latest_valid() == 1
        state = checkpoints.restore_state(1, _target())
        average = checkpoints.restore_hook(1, "ema", _target().params)
    assert int(state.step) == 1
    _assert_is(state.params, layout_1, "")
    _assert_is(state.opt_state[1][0].mu, layout_1, "mu/")
    _assert_is(average, layout_1, "ema/")


def test_parameters_of_layout_1_are_read_for_export(layout_1):
    step = layout_1 / "checkpoints" / "1"
    with open_params(step, _target().params, layout=read_manifest(step).layout) as params:
        read = jax.tree.map(lambda leaf: leaf.read(), params)
    _assert_is(read, layout_1, "")


def test_what_is_written_after_it_has_the_layout_of_today(layout_1):
    folder = layout_1 / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore_state(1, _target())
        checkpoints.save(2, Snapshot(state, {}, {}))
    assert read_manifest(folder / "2").layout == 2
    assert_close(Checkpoints(folder).restore_state(2, _target()), state, EXACT)


def test_a_checkpoint_of_a_later_layout_is_refused_in_one_line_and_kept(layout_1):
    folder = layout_1 / "checkpoints"
    path = folder / "1" / "manifest.json"
    files = json.loads(path.read_text())
    path.write_text(json.dumps({"checkpoint": "1", "layout": 3, "frozen": None, "files": files}))
    before = content(folder)
    with refused(ValueError, folder / "1", "layout 3", "up to 2"):
        Checkpoints(folder).latest_valid()
    assert content(folder) == before
