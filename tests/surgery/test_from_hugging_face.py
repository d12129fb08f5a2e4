"""A run that begins with the weights of a Hugging Face folder, whose model its file may leave out."""

import dataclasses

import jax
import numpy as np
from messages import check, refusal, refused
from tolerances import EXACT, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.trainable import Adapters
from jaxtrain.surgery.huggingface import import_folder, open_folder
from jaxtrain.train.initial import FromHuggingFace

FILE = """
from __gin__ import dynamic_registration
from jaxtrain import config
from jaxtrain import data
from jaxtrain.optim import adamw
from jaxtrain.optim import schedules
from jaxtrain.train import initial
from jaxtrain.train import phases
config.TrainConfig:
    data = @data.DataConfig()
    optimizer = @adamw.AdamW()
    phases = (@phases.Phase(),)
    initial = @initial.FromHuggingFace()
data.DataConfig.source = @data.StandardLibrary()
adamw.AdamW.learning_rate = @schedules.Constant()
schedules.Constant.peak = 1e-4
phases.Phase:
    steps = 2
    batch_size = 8
    sequence_length = 16
"""


def _arrays(config, folder, mesh=None):
    return FromHuggingFace(path=str(folder))(config, (mesh or MeshConfig()).build(), jax.random.key(0))


def test_a_file_without_a_model_has_that_of_the_folder(tiny_folder, tmp_path):
    file = tmp_path / "tuned.gin"
    file.write_text(f"{FILE}initial.FromHuggingFace.path = '{tiny_folder}'\n")
    model = open_folder(tiny_folder)[0]
    config = load(file).config
    assert config.model == config.initial.model == model
    changed = load(file, ["model.dropout=0.1"]).config
    assert changed.model == dataclasses.replace(model, dropout=0.1) and changed.initial.model == model


def test_a_folder_that_is_none_is_refused_with_its_place(tmp_path, capsys):
    (tmp_path / "tuned.gin").write_text(f"{FILE}initial.FromHuggingFace.path = '{tmp_path}/none'\n")
    check(refusal(capsys, "config", "show", tmp_path / "tuned.gin"), "tuned.gin:21", tmp_path / "none", "config.json")


def test_the_weights_are_those_of_the_folder_on_any_mesh(tiny_folder):
    config, expected = import_folder(tiny_folder)
    model = _arrays(config, tiny_folder)
    assert_close(model.params, expected, EXACT)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype("float32")}
    laid_out = model.params["embedding"]["table"].sharding
    assert laid_out.mesh.size == 8 and not laid_out.is_fully_replicated


def test_adapters_are_put_around_them(tiny_folder):
    plain, weights = import_folder(tiny_folder)
    [block] = plain.pattern
    block = dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, linear=LoRA(rank=2)))
    config = dataclasses.replace(plain, pattern=(block,), trainable=Adapters())
    model = _arrays(config, tiny_folder)
    assert jax.tree.structure(model.params) == jax.tree.structure(abstract_model(config).shapes.params)
    linears, matrices = (of["stacks"]["blocks"]["blocks"][0]["mlp"] for of in (model.frozen, weights))
    for name in ("up", "gate", "down"):
        assert_close(linears[name]["base"]["kernel"], matrices[name]["kernel"], EXACT)
    assert_close(model.frozen["embedding"], weights["embedding"], EXACT)


def test_another_architecture_is_refused(tiny_folder):
    config = dataclasses.replace(open_folder(tiny_folder)[0], d_model=8)
    with refused(ValueError, "embedding.table", "(320, 8)"):
        _arrays(config, tiny_folder)


def test_another_function_of_the_same_weights_is_refused_unless_it_is_meant(tiny_folder):
    plain = open_folder(tiny_folder)[0]
    config = dataclasses.replace(plain, norm=dataclasses.replace(plain.norm, epsilon=0.1))
    with refused(ValueError, tiny_folder, "model.norm.epsilon=0.1", plain.norm.epsilon):
        _arrays(config, tiny_folder)
    meant = FromHuggingFace(path=str(tiny_folder), changed=("model.norm.epsilon",))
    assert_close(meant(config, MeshConfig().build(), jax.random.key(0)).params, import_folder(tiny_folder)[1], EXACT)


def test_a_folder_that_has_changed_since_is_refused(tiny_folder):
    config = open_folder(tiny_folder)[0]
    before = dataclasses.replace(config, dropout=0.5)
    with refused(ValueError, tiny_folder, "config.json"):
        FromHuggingFace(path=str(tiny_folder), model=before)(config, MeshConfig().build(), jax.random.key(0))
