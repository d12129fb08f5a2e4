"""Validation sets by name, the sources of a mixture, bits a byte, and what an objective has to return."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from messages import refused
from tiny import variant

from jaxtrain.data import DataConfig, Mixture, Weighted
from jaxtrain.models.decoder import abstract_model
from jaxtrain.objectives.base import Objective, Terms
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.runs import load_run
from jaxtrain.train.evaluation import ValidationSet, validation_sets
from jaxtrain.train.hooks import Checkpoint, Evaluate, ExponentialMovingAverage
from jaxtrain.train.metrics import read_metrics
from jaxtrain.train.step import make_evaluation_step


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory):
    """A run on letters and digits that is evaluated on parts of both and on other letters, and its folder."""
    folder = tmp_path_factory.mktemp("mixed")
    digits = runs.write_corpus(folder / "digits", files=5, alphabet="0123456789\n").source
    other = runs.write_corpus(folder / "other", files=2, alphabet="stuvwxyz \n").source
    sources = (Weighted(source=data.source, weight=0.5, name="letters"), Weighted(source=digits, weight=0.5))
    config = runs.tiny_run(
        DataConfig(source=Mixture(sources=sources), validation_fraction=0.3),
        steps=4,
        hooks=(Evaluate(every_steps=2, batches=3), ExponentialMovingAverage(), Checkpoint(every_steps=2)),
        validation=(ValidationSet(name="other", source=other),),
    )
    config.train(folder / "run")
    return config, folder / "run"


def test_sets_and_sources_are_measured_by_name_and_of_averages(mixed):
    [record] = [record for record in read_metrics(mixed[1] / "metrics.jsonl") if record["step"] == 4]
    kinds = ("validation_loss", "validation_bits_per_byte")
    parts = {f"{kind}{on}{of}" for kind in kinds for on in ("", "_other") for of in ("", "_ema")}
    parts |= {f"validation_loss_{source}{of}" for source in ("letters", "source1") for of in ("", "_ema")}
    assert {name for name in record if name.startswith("validation")} == parts | {
        "validation_weight",
        "validation_weight_other",
    }
    assert record["validation_loss_other"] > record["validation_loss_letters"], "letters that it never saw"


def test_sources_make_up_the_whole_and_are_the_rows_of_its_batches(mixed):
    """Not rounded to whole batches: the first three batches of eight rows, however many of them are letters."""
    _, folder = mixed
    run = load_run(folder)
    found = run.evaluate(batches=3)
    assert sum(part.weight for part in found.sources.values()) == found.weight
    total = sum(part.loss * part.weight for part in found.sources.values())
    assert total / found.weight == pytest.approx(found.loss, rel=1e-6)
    rows = run.validation_sets[""].rows
    assert found.weight == sum(float(rows[row].weights.sum()) for row in range(24))
    whole = run.evaluate()
    assert whole.weight == sum(float(rows[row].weights.sum()) for row in range(len(rows))) > found.weight


def test_bits_a_byte_are_those_of_the_text_whatever_the_tokens(mixed, tmp_path):
    """Tokens of one and of three bytes, each at the loss of a fair choice of 8."""
    found = load_run(mixed[1]).evaluate(on="other")
    assert found.bits_per_byte == pytest.approx(found.loss * found.weight / math.log(2) / found.bytes)
    rows = load_run(mixed[1]).validation_sets["other"].rows
    targets = np.concatenate([rows[row].targets[rows[row].weights > 0] for row in range(len(rows))])
    assert found.bytes == (targets != 256).sum() < found.weight, "ends of documents are no bytes"


def test_a_run_without_text_held_out_is_evaluated_on_its_sets_alone(mixed):
    config, _ = mixed
    data = dataclasses.replace(config.data, validation_fraction=0.0)
    assert list(validation_sets(data, config.validation, sequence_length=16)) == ["other"]
    judged = Checkpoint(every_steps=1, best_by="validation_loss_other")
    dataclasses.replace(config, data=data, hooks=(config.hooks[0], judged))
    with refused(ValueError, "'validation_loss'", "validation_loss_other"):
        dataclasses.replace(config, data=data, hooks=config.hooks)


@pytest.mark.parametrize("names", [("ema",), ("letters",), ("one", "one")])
def test_sets_that_share_a_name_with_another_number_are_refused(names, mixed):
    config, _ = mixed
    sets = tuple(ValidationSet(name=name, source=config.validation[0].source) for name in names)
    with refused(ValueError, f"'validation_loss_{names[0]}'"):
        dataclasses.replace(config, validation=sets)


def test_a_set_that_is_not_there_and_a_name_that_is_none_are_refused(mixed):
    with refused(ValueError, "on='none'", "'other'"):
        load_run(mixed[1]).evaluate(on="none")
    with refused(ValueError, "name='a b'"):
        ValidationSet(name="a b", source=mixed[0].validation[0].source)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Returns(Objective):
    """Returns what it is told, with the denominators that it is told."""

    minimised: tuple[str, ...] = ("nll",)
    reported: tuple[str, ...] = ()
    weighted: tuple[str, ...] = ("nll", "other")

    def weights(self, batch):
        return dict.fromkeys(self.weighted, jnp.sum(batch.weights))

    def __call__(self, model, batch, keys):
        nll = NextToken()(model, batch, keys).minimised["nll"]
        return Terms(dict.fromkeys(self.minimised, nll), dict.fromkeys(self.reported, nll))


@pytest.mark.parametrize(
    ("objective", "facts"),
    [
        (Returns(minimised=("other",)), ("'nll'", "`evaluated`")),
        (Returns(reported=("more",)), ("'more'", "weights()")),
        (Returns(reported=("nll",)), ("'nll'", "both")),
    ],
    ids=["without the term that it is evaluated by", "a term without a denominator", "a term twice"],
)
def test_an_objective_that_breaks_its_contract_is_refused_where_it_is_traced(objective, facts, data, tmp_path):
    config = runs.tiny_run(data, objective=objective)
    with refused(ValueError, "objective=Returns", *facts):
        config.recipe.program(config.recipe.spans[0], config.mesh.build()).trace()
    graph, shapes, _ = abstract_model(variant(vocab_size=320))
    batch = validation_sets(data, (), sequence_length=16)[""].rows[0]
    with refused(ValueError, "objective=Returns", *facts):
        jax.eval_shape(make_evaluation_step(graph, objective), shapes, jax.tree.map(lambda x: x[None], batch))
