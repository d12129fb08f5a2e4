"""Weights of documents and of parts of their text: each token with loss has its own, and no weight costs no byte."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

from jaxtrain.data import (
    BestFit,
    ByteTokenizer,
    ConcatenateAndSplit,
    DataConfig,
    Document,
    Part,
    Source,
    bigram_loss,
    loader,
    open_rows,
)
from jaxtrain.data.examples import MaskedTokens
from jaxtrain.data.split import documents_of
from jaxtrain.data.store import open_store
from jaxtrain.data.weights import Weights
from jaxtrain.mesh import MeshConfig
from jaxtrain.objectives.base import Terms, means
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.shapes import ModelState
from jaxtrain.train.evaluation import HELD_OUT, evaluate, validation_sets

QUESTION, ANSWER = "Q: {}? ", "A: {}."
SHAPE = {"sequence_length": 24, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Given(Source):
    """The documents that a test gives."""

    given: tuple[Document, ...]

    def documents(self) -> Iterator[Document]:
        yield from self.given

    def fingerprint(self) -> str:
        return repr(self.given)


def _question(number: int, weight: float = 1.0) -> Document:
    texts = QUESTION.format("x" * (number % 5)), ANSWER.format("y" * (number % 7))
    return Document(f"{number}", (Part(texts[0], 0.0), Part(texts[1], 1.0)), weight)


QUESTIONS = Given(tuple(_question(number, 1.0 + number % 3) for number in range(40)))


def _weights(document: Document) -> list[float]:
    """One weight a byte, and that of the end, without the store."""
    each = [document.weight * part.weight for part in document.parts for _ in part.text.encode()]
    return [*each, each[-1]]


def _weighted_pairs(batches) -> list[tuple[int, int, float]]:
    leaves = (np.concatenate([getattr(b, name)[b.segment_ids > 0] for b in batches]) for name in NAMES)
    return sorted(zip(*(leaf.tolist() for leaf in leaves), strict=True))


NAMES = ("tokens", "targets", "weights")


@pytest.mark.parametrize("packing", [BestFit(), ConcatenateAndSplit()])
def test_every_target_has_the_weight_of_its_part_times_that_of_its_document(packing):
    data = DataConfig(source=QUESTIONS, validation_fraction=0.0, packing=packing)
    batches = list(loader(data, split="train", batch_size=4, num_epochs=1, **SHAPE))
    expected = []
    for document in QUESTIONS.given:
        ids = [*"".join(part.text for part in document.parts).encode(), 256]
        expected += zip(ids[:-1], ids[1:], _weights(document)[1:], strict=True)
    assert _weighted_pairs(batches) == sorted(expected)


def test_the_tokens_with_loss_decode_to_the_answer_and_its_end():
    store = open_store(QUESTIONS, ByteTokenizer())
    for document, start, length in zip(QUESTIONS.given, store.starts, store.lengths, strict=True):
        places = np.arange(start, start + length)
        asked = store.tokens[places[store.weights.at(places) > 0]]
        assert asked[-1] == 256 and ByteTokenizer().decode(asked) == document.parts[1].text


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=8))
def test_stretches_are_the_weights_one_by_one(stretches):
    lengths, values = zip(*stretches, strict=True)
    dense = np.repeat(values, lengths)
    weights = Weights(np.cumsum(lengths), np.array(values, np.float32))
    places = np.arange(len(dense))
    np.testing.assert_array_equal(weights.at(places), dense)
    np.testing.assert_array_equal(weights.before(np.append(places, len(dense))), np.append(0, np.cumsum(dense)))


def test_weights_of_one_cost_no_byte_and_others_are_another_text(cache):
    plain = Given(tuple(Document(str(n), f"text {n}") for n in range(5)))
    ones = Given(tuple(Document(str(n), (Part("text ", 2.0), Part(str(n), 2.0)), 0.5) for n in range(5)))
    halves = Given(tuple(Document(str(n), f"text {n}", 0.5) for n in range(5)))
    first, second, third = (open_store(source, ByteTokenizer()) for source in (plain, ones, halves))
    assert first.weights is second.weights is None
    assert first.digest == second.digest == "e369e06c17ecedd2ad26a70aa16ead69" != third.digest
    sizes = sorted(sum(f.stat().st_size for f in folder.iterdir()) for folder in (cache / "tokens").iterdir())
    assert sizes[0] == sizes[1] < sizes[2]


def test_a_part_is_tokenised_by_itself(tmp_path):
    """Or else a token could lie half in a part with loss."""

    class Pairs(ByteTokenizer):
        def encode_batch(self, texts):
            return [np.array([len(pair) for pair in itertools.batched(text, 2)], np.int32) for text in texts]

    [parts] = Pairs().encode_documents([("abc", "def")])
    assert [ids.tolist() for ids in parts] == [[2, 1], [2, 1, 256]]


@pytest.mark.parametrize("name", ["weights.npy", "weight_ends.npy"])
def test_a_store_whose_weights_are_damaged_is_built_anew(cache, name):
    open_store(QUESTIONS, ByteTokenizer())
    (folder,) = (cache / "tokens").iterdir()
    file = folder / name
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    places = np.arange(sum(len(_weights(document)) for document in QUESTIONS.given))
    found = open_store(QUESTIONS, ByteTokenizer()).weights.at(places)
    np.testing.assert_array_equal(found, np.concatenate([_weights(document) for document in QUESTIONS.given]))


def test_a_mean_over_little_weight_is_still_a_mean():
    """A batch whose documents weigh 0.01 each has the loss of the same batch with weights of 1."""
    sums, weights = {"nll": jnp.float32(0.03), "z": jnp.float32(0)}, {"nll": jnp.float32(0.01), "z": jnp.float32(0)}
    assert {name: float(mean) for name, mean in means(sums, weights).items()} == {"nll": pytest.approx(3), "z": 0}


def test_a_bigram_model_is_asked_for_the_tokens_with_loss_alone():
    """All questions differ from all answers, so a model that counts questions, too, would have another loss."""
    source = Given(tuple(_question(number) for number in range(40)))
    answers = Given(tuple(Document(d.key, d.parts[0].text[-1] + d.parts[1].text) for d in source.given))
    losses = [
        bigram_loss(DataConfig(source=own, validation_fraction=0.3), batch_size=4, **SHAPE) for own in (source, answers)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "document, facts",
    [
        (Document("a", "text", -1.0), ["'a'", "weight=-1.0"]),
        (Document("a", (Part("text", float("nan")),)), ["'a'", "weight=nan"]),
        (Document("a", (Part("text", 1e30),), 1e30), ["'a'", "weight=1e+30"]),
        (Document("a", "text", 0.0), ["weight 0"]),
    ],
    ids=["negative", "nan", "too large", "nothing"],
)
def test_weights_that_are_none_are_refused(document, facts, cache):
    with refused(ValueError, *facts):
        open_store(Given((document,)), ByteTokenizer())
    assert list((cache / "tokens").iterdir()) == []


def test_a_split_without_loss_is_refused():
    source = Given(tuple(Document(str(n), "text", float(n == 0)) for n in range(40)))
    store = open_store(source, ByteTokenizer())
    [split] = {"train", "validation"} - {_split_of("0", store)}
    with refused(ValueError, "validation_fraction=0.3", f"{split=}", "weight 0"):
        documents_of(store, split=split, validation_fraction=0.3)


def _split_of(key: str, store) -> str:
    return "validation" if store.key_hashes[int(key)] / 2.0**64 < 0.3 else "train"


def test_batches_without_loss_have_no_mean():
    weightless = Given((Document("0", (Part("w" * 60), Part("x" * 500, 0.0), Part("y"))),))
    data = DataConfig(source=weightless, validation_fraction=0.9, packing=ConcatenateAndSplit())
    shape = {"batch_size": 2, "sequence_length": 8}
    with refused(ValueError, "num_batches=1"):
        bigram_loss(data, **shape, seed=0, num_batches=1)
    zero = {"nll": jnp.float32(0)}
    with refused(ValueError, "batches=1"):
        evaluate(
            lambda model, batch: (Terms(zero, {}), zero),
            NextToken(),
            ModelState({}),
            validation_sets(data, (), sequence_length=8)[HELD_OUT],
            batch_size=2,
            batches=1,
            mesh=MeshConfig().build(jax.devices()[:1]),
        )


def test_examples_that_cannot_keep_weights_are_refused():
    data = DataConfig(source=QUESTIONS, examples=MaskedTokens(mask=256))
    with refused(ValueError, "MaskedTokens(mask=256", "NextTokens()"):
        open_rows(data, split="train", **SHAPE)
