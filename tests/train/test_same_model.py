"""Weights of another run or folder come with the keys that their shapes do not show, or are refused."""

import dataclasses

import jax
import pytest
from flax import nnx
from messages import refused
from tiny import DECODER, training_batch, variant

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.heads import CappedHead
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.masks import Causal
from jaxtrain.nn.moe.balances import RouterBias, RowLoss
from jaxtrain.nn.moe.dispatch import EveryExpert
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions import NoPositions, Rotary
from jaxtrain.nn.remat import FullRemat
from jaxtrain.nn.trainable import Adapters
from jaxtrain.shapes import ModelState
from jaxtrain.technique import Technique
from jaxtrain.train.initial import FromRun
from jaxtrain.train.initial.same_model import check_same_function, differences

[BLOCK] = DECODER.pattern


def _with(mixer=None, mlp=None, **model) -> DecoderConfig:
    layers = {
        "mixer": dataclasses.replace(BLOCK.mixer, **mixer or {}),
        "mlp": dataclasses.replace(BLOCK.mlp, **mlp or {}),
    }
    return variant(pattern=(dataclasses.replace(BLOCK, **layers),), **model)


OTHER = {  # what has no array, each the same shapes and another function
    "model.pattern[0].mixer.positions.theta": _with(mixer={"positions": Rotary(theta=5e5)}),
    "model.pattern[0].mixer.positions": _with(mixer={"positions": NoPositions()}),
    "model.pattern[0].mixer.mask.window": _with(mixer={"mask": dataclasses.replace(BLOCK.mixer.mask, window=8)}),
    "model.pattern[0].mixer.mask": _with(mixer={"mask": Causal()}),
    "model.pattern[0].mlp.activation": _with(mlp={"activation": "relu"}),
    "model.norm.epsilon": variant(norm=RMSNormConfig(epsilon=1e-3)),
    "model.head": variant(head=CappedHead(cap=30.0, linear=Dense())),
}


def _check(source: DecoderConfig, config: DecoderConfig, *changed: str) -> None:
    check_same_function(source, config, path="runs/base", owner="the run", changed=changed)


@pytest.mark.parametrize("key", OTHER)
def test_a_key_that_no_shape_shows_is_found(key):
    of_both = [abstract_model(config).shapes for config in (DECODER, OTHER[key])]
    assert of_both[0] == of_both[1]
    assert [found for found, _, _ in differences(OTHER[key], DECODER, "model")] == [key]


def test_all_keys_are_named_with_both_values_and_what_to_write():
    other = dataclasses.replace(OTHER["model.pattern[0].mixer.positions.theta"], norm=RMSNormConfig(epsilon=1e-3))
    theta, epsilon = "model.pattern[0].mixer.positions.theta", "model.norm.epsilon"
    with refused(ValueError, "'runs/base'", f"{theta}=500000.0", 10000.0, f"{epsilon}=0.001", 1e-06, f"'{theta}'"):
        _check(DECODER, other)
    with refused(ValueError, f"{epsilon}=0.001", f"initial.changed=('model.pattern', '{epsilon}',)"):
        _check(DECODER, other, "model.pattern")


def test_a_change_that_is_meant_is_named_by_its_key_or_one_above_it():
    other = OTHER["model.pattern[0].mixer.positions.theta"]
    for meant in ("mixer.positions.theta", "mixer.positions", "mixer"):
        for place in ("[0]", ".0"):
            _check(DECODER, other, f"model.pattern{place}.{meant}")
    _check(DECODER, other, "model")
    for another in ("model.pattern[0].mixer.pos", "model.pattern[1]", "model.pattern[0].mixer.positions.theta.x"):
        with refused(ValueError, "theta=500000.0", recorded=False):
            _check(DECODER, other, another)


def test_linears_of_other_kinds_are_no_difference():
    lora = LoRA(rank=2)
    _check(DECODER, _with(mixer={"linear": lora}, mlp={"linear": lora}, trainable=Adapters()))
    _check(_with(mlp={"linear": lora}), DECODER)


def test_neutral_fields_change_no_program_but_those_that_say_how_it_is_computed():
    """tests/models compare scan, remat and dtype by numbers. Of what is trained, logits know nothing."""
    same = {"max_length": 64, "vocab_multiple": 2, "dropout": 0.5}
    assert {*same, "scan", "remat", "compute_dtype", "trainable", "teacher"} == set(DecoderConfig.neutral)
    batch = training_batch(2, 16, vocab_size=64)

    def program(config: DecoderConfig) -> str:
        graph, shapes, _ = abstract_model(config)
        return str(jax.make_jaxpr(lambda params: nnx.merge(graph, params)(batch))(shapes.params))

    _check(DECODER, variant(**same, scan=False, remat=FullRemat(), compute_dtype="bfloat16"))
    assert program(variant(**same)) == program(DECODER)


def test_of_a_mixture_the_dispatch_and_losses_make_no_difference_and_a_bias_does():
    def mixture(**changes) -> DecoderConfig:
        mlp = MixtureConfig(experts=4, top_k=2, expert=BLOCK.mlp, **changes)
        return variant(pattern=(dataclasses.replace(BLOCK, mlp=mlp),))

    biased = mixture(balances=(RouterBias(rate=0.1), RowLoss(coefficient=0.1)))
    _check(mixture(balances=(RowLoss(coefficient=0.1),)), mixture(dispatch=EveryExpert()))
    _check(biased, mixture(balances=(RouterBias(rate=0.1),)))
    assert [key for key, _, _ in differences(mixture(), biased, "model")] == ["model.pattern[0].mlp.balances"]


def _subclasses(cls: type) -> list[type]:
    return [each for sub in cls.__subclasses__() for each in (sub, *_subclasses(sub))]


def test_neutral_fields_are_fields():
    for cls in [DecoderConfig, *filter(dataclasses.is_dataclass, _subclasses(Technique))]:
        assert set(cls.neutral) <= {field.name for field in dataclasses.fields(cls)}, cls


def test_weights_of_a_run_are_refused_before_they_are_read(tmp_path):
    config = OTHER["model.pattern[0].mlp.activation"]
    initial = FromRun(path=str(tmp_path), model=DECODER)  # there are no weights
    with refused(ValueError, tmp_path, "model.pattern[0].mlp.activation='relu'", "'silu'"):
        initial(config, MeshConfig().build(), jax.random.key(0))


def test_a_run_whose_model_is_not_given_is_said_to_be_compared_by_shapes_alone(monkeypatch, caplog):
    model = ModelState({})
    monkeypatch.setattr(FromRun, "restored", lambda self, source, mesh: model)
    assert FromRun(path="runs/base")(DECODER, MeshConfig().build(), jax.random.key(0)) is model
    assert "nothing but shapes is compared" in caplog.text and "load_run('runs/base')" in caplog.text
