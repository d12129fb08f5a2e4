"""Adapters of peft: its logits here, its bits there and back, and another base's are refused."""

import dataclasses
import json
import shutil

import huggingface_goldens as goldens
import jax
import numpy as np
import pytest
from messages import check, refusal, refused
from safetensors.numpy import load_file, save_file
from tiny import random_model
from tolerances import SAME_LOGITS, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.linear.dora import DoRA
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.some import Some
from jaxtrain.nn.param import merge
from jaxtrain.nn.trainable import Adapters
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.surgery.huggingface import import_folder
from jaxtrain.surgery.huggingface.adapters import CONFIG, WEIGHTS, export_adapter, read_adapter
from jaxtrain.surgery.linears import converted
from jaxtrain.train.state import initial_model

PEFT = goldens.GOLDENS.parent / "peft"
ADAPTERS = {"lora": LoRA(rank=3, alpha=5, root_of_rank=True), "dora": DoRA(rank=2, alpha=3)}
every_kind = pytest.mark.parametrize("kind", ADAPTERS)


@pytest.fixture(scope="module")
def llama():
    return import_folder(goldens.GOLDENS / "llama")


def _logits(config, model: ModelState, tokens: np.ndarray) -> jax.Array:
    ones = np.ones(tokens.shape, np.int32)
    batch = Batch(tokens, tokens, ones.astype(np.float32), ones, ones.cumsum(axis=1, dtype=np.int32) - 1)
    return jax.jit(lambda model: merge(abstract_model(config).graph, model)(batch))(model)


@every_kind
def test_a_model_with_an_adapter_has_the_logits_of_peft(kind, llama):
    base, params = llama
    config, adapters = read_adapter(PEFT / kind, base, params)
    around = jax.jit(converted, static_argnums=(1, 2))
    model = around(ModelState(params), base, config, initial_model(config, jax.random.key(0)))
    tokens, _ = goldens.golden("llama")
    found = _logits(config, model._replace(params=adapters), tokens)
    assert np.abs(found - np.load(PEFT / kind / "golden.npz")["logits"]).max() < 1e-4  # float32 logits of the peer


@every_kind
def test_an_adapter_comes_back_bit_for_bit(kind, llama, tmp_path):
    base, params = llama
    config, adapters = read_adapter(PEFT / kind, base, params)
    export_adapter(config, adapters, tmp_path, base="llama")
    found, desired = (load_file(folder / WEIGHTS) for folder in (tmp_path, PEFT / kind))
    desired = {name: array for name, array in desired.items() if "base_layer" not in name}
    assert found.keys() == desired.keys()
    assert all(np.array_equal(found[name], desired[name]) for name in desired)
    ours, theirs = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path, PEFT / kind))
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "task_type"):
        assert ours[key] == theirs[key]
    assert {name.split(".")[-1] for name in ours["target_modules"]} == set(theirs["target_modules"])


def test_adapters_stand_around_the_linears_that_the_folder_names(llama):
    config, _ = read_adapter(PEFT / "lora", *llama)
    assert config.pattern[0].mixer.linear == Some(names=("query", "value"), linear=ADAPTERS["lora"])
    config, _ = read_adapter(PEFT / "dora", *llama)
    assert config.pattern[0].mlp.linear == ADAPTERS["dora"] == config.head.linear


@pytest.fixture(scope="module")
def runs(tiny_folder, tmp_path_factory):
    """A run of a base, and one of an adapter around it."""
    folder = tmp_path_factory.mktemp("adapter")
    assert main(["convert", str(tiny_folder), str(folder / "base")]) == 0
    rng, tensors = np.random.default_rng(0), {}
    weights = goldens.tensors(tiny_folder)
    for name, array in weights.items():
        if name.endswith(("q_proj.weight", "up_proj.weight")):
            site = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            outputs, inputs = array.shape
            tensors[f"{site}A.weight"] = rng.standard_normal((2, inputs)).astype(np.float32)
            tensors[f"{site}B.weight"] = rng.standard_normal((outputs, 2)).astype(np.float32)
    adapter = folder / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "up_proj"]}
    (adapter / CONFIG).write_text(json.dumps(settings))
    assert main(["convert", str(adapter), str(folder / "run"), "--adapter", "--base", str(folder / "base")]) == 0
    return folder


def test_the_command_makes_a_run_of_an_adapter_and_an_adapter_of_a_run(runs, tmp_path):
    assert main(["convert", str(runs / "run"), str(tmp_path / "back"), "--adapter"]) == 0
    found, desired = (load_file(folder / WEIGHTS) for folder in (tmp_path / "back", runs / "adapter"))
    assert found.keys() == desired.keys() and all(np.array_equal(found[name], desired[name]) for name in desired)
    assert main(["generate", str(runs / "run"), "--prompt", "a", "--tokens", "2"]) == 0


def test_an_adapted_run_is_exported_merged(runs, tmp_path, tiny_folder):
    assert main(["convert", str(runs / "run"), str(tmp_path / "merged")]) == 0
    before, after = goldens.tensors(tiny_folder), goldens.tensors(tmp_path / "merged")
    adapter = load_file(runs / "adapter" / WEIGHTS)
    for name, array in before.items():
        site = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        update = adapter[f"{site}B.weight"] @ adapter[f"{site}A.weight"] if f"{site}A.weight" in adapter else 0
        np.testing.assert_allclose(after[name], array + update, rtol=1e-5, atol=1e-5)


def _changed(runs, tmp_path, *, settings=None, tensors=None):
    """Return a copy of the adapter with some of its settings or tensors changed."""
    folder = shutil.copytree(runs / "adapter", tmp_path / "changed")
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | (settings or {})))
    if tensors:
        save_file(tensors(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"peft_type": "PREFIX_TUNING"}, ["peft_type='PREFIX_TUNING'"]),
        ({"bias": "all"}, ["bias='all'"]),
        ({"modules_to_save": ["lm_head"]}, ["modules_to_save=['lm_head']"]),
        ({"use_dora": True, "use_rslora": True}, ["use_rslora", "use_dora"]),
        ({"r": "two"}, ["r='two'"]),
    ],
    ids=["kind", "bias", "modules", "both", "rank"],
)
def test_what_an_adapter_cannot_be_read_with_is_refused(runs, tmp_path, settings, facts):
    folder = _changed(runs, tmp_path, settings=settings)
    base = load(runs / "base").config.model
    with refused(ValueError, *facts):
        read_adapter(folder, base, {})


def _of_mixture(family: str, ends: tuple[str, ...], folder):
    """Write an adapter of some linears of a recorded mixture, and return the tensors of its base and its own."""
    rng, base = np.random.default_rng(0), goldens.tensors(goldens.GOLDENS / family)
    own = {}
    for name, array in base.items():
        if name.endswith(tuple(f"{end}.weight" for end in ends)):
            site = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            own[f"{site}A.weight"] = rng.standard_normal((2, array.shape[1])).astype(np.float32)
            own[f"{site}B.weight"] = rng.standard_normal((array.shape[0], 2)).astype(np.float32)
    save_file(own, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": list(ends)}
    (folder / CONFIG).write_text(json.dumps(settings))
    return base, own


def _exported(config, adapters, folder):
    folder.mkdir()
    export_adapter(config, adapters, folder)
    return load_file(folder / WEIGHTS)


def test_adapters_of_a_mixture_s_attention_and_shared_expert_are_its_merged_weights(tmp_path):
    """In, against the weights with their updates added; and out, bit for bit."""
    base, own = _of_mixture("qwen2_moe", ("q_proj", "o_proj", "shared_expert.up_proj"), tmp_path)
    merged, weights = goldens.copy("qwen2_moe", tmp_path), dict(base)
    for name in base:
        site = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{site}A.weight" in own:
            weights[name] = base[name] + own[f"{site}B.weight"] @ own[f"{site}A.weight"]
    goldens.save(weights, merged)
    source, params = import_folder(goldens.GOLDENS / "qwen2_moe")
    config, adapters = read_adapter(tmp_path, source, params)
    around = jax.jit(converted, static_argnums=(1, 2))
    model = around(ModelState(params), source, config, initial_model(config, jax.random.key(0)))
    tokens, _ = goldens.golden("qwen2_moe")
    found = _logits(config, model._replace(params=adapters), tokens)
    assert_close(found, goldens.logits(*import_folder(merged), tokens), SAME_LOGITS)
    back = _exported(config, adapters, tmp_path / "back")
    assert back.keys() == own.keys() and all(np.array_equal(back[name], own[name]) for name in own)


def test_adapters_of_dense_layers_before_mixtures_come_back_bit_for_bit(tmp_path):
    """And of latent attention, in both stacks."""
    _, own = _of_mixture("deepseek_v2", ("mlp.down_proj", "o_proj", "shared_experts.down_proj"), tmp_path)
    config, adapters = read_adapter(tmp_path, *import_folder(goldens.GOLDENS / "deepseek_v2"))
    assert config.first and adapters["stacks"].keys() == {"first", "blocks"}
    back = _exported(config, adapters, tmp_path / "back")
    assert back.keys() == own.keys() and all(np.array_equal(back[name], own[name]) for name in own)


def test_adapters_of_single_experts_are_refused_in_both_directions(tmp_path):
    _of_mixture("qwen2_moe", ("experts.1.up_proj",), tmp_path)
    source, params = import_folder(goldens.GOLDENS / "qwen2_moe")
    with refused(ValueError, tmp_path / WEIGHTS, "model.layers.0.mlp.experts.1.up_proj", "peft"):
        read_adapter(tmp_path, source, params)
    block = source.pattern[0]
    expert = dataclasses.replace(block.mlp.expert, linear=LoRA(rank=2))
    pattern = (dataclasses.replace(block, mlp=dataclasses.replace(block.mlp, expert=expert)),)
    adapted = dataclasses.replace(source, pattern=pattern, trainable=Adapters())
    with refused(ValueError, "--adapter", "experts"):
        export_adapter(adapted, random_model(adapted).params, tmp_path)


OTHERS = {
    "wider": lambda tensors: {name: np.tile(array, (1, 2)) for name, array in tensors.items()},
    "deeper": lambda tensors: tensors | {n.replace("layers.1", "layers.9"): a for n, a in tensors.items()},
    "fewer layers": lambda tensors: {name: array for name, array in tensors.items() if "layers.1" not in name},
    "half": lambda tensors: {name: array for name, array in tensors.items() if "lora_A" in name},
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_adapter_of_another_base_is_refused(runs, tmp_path, other, capsys):
    folder = _changed(runs, tmp_path, tensors=OTHERS[other])
    command = ("convert", str(folder), str(tmp_path / "run"), "--adapter", "--base", str(runs / "base"))
    check(refusal(capsys, *command), str(folder / WEIGHTS))


def test_the_weights_of_another_base_beside_an_adapter_are_refused(llama):
    config, params = llama
    other = {**params, "output": {"kernel": params["output"]["kernel"] + 1}}
    with refused(ValueError, "lm_head"):
        read_adapter(PEFT / "dora", config, other)


def test_a_run_without_adapters_and_one_that_trains_more_have_no_adapter_to_export(runs, tmp_path, capsys):
    check(refusal(capsys, "convert", runs / "base", tmp_path / "a", "--adapter"), "--adapter")
    check(refusal(capsys, "convert", runs / "adapter", tmp_path / "b", "--adapter"), "--base")
    config = load(runs / "run").config
    with refused(ValueError, "final_norm.scale"):
        norms = abstract_model(load(runs / "base").config.model).shapes.params["final_norm"]
        params = {**abstract_model(config.model).shapes.params, "final_norm": norms}
        export_adapter(config.model, params, tmp_path)
