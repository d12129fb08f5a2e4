"""Generation until a stop text is generation without one, cut at the stop, and that of lm-eval's own model."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from messages import refused
from tiny import random_model, variant

from jaxtrain.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.shapes import ModelState
from jaxtrain.surgery.huggingface import import_folder
from jaxtrain.train import until
from jaxtrain.train.until import before_stops, generate_until

GOLDENS = Path(__file__).parents[1] / "golden"
CONFIG = variant(vocab_size=257)
GREEDY = Sampling(temperature=0.0)


def written(config, model, prompts, **options):
    usual = {"tokenizer": ByteTokenizer(), "max_length": config.max_length, "sampling": GREEDY, "batch_size": 2}
    usual |= {"mesh": MeshConfig(fsdp=2, tensor=2).build(jax.devices()[:4])}
    return generate_until(abstract_model(config).graph, model, prompts, **(usual | options))


def test_text_before_the_first_stop():
    assert before_stops("abcdef", ["ef", "c"]) == "ab" and before_stops("abc", ["x"]) == "abc"


def test_texts_end_at_their_first_stop_whatever_the_batch(monkeypatch):
    monkeypatch.setattr(until, "PIECE", 5)  # which does not divide the tokens
    model, mesh = random_model(CONFIG, 3), MeshConfig().build(jax.devices()[:1])
    random = np.random.default_rng(0)
    prompts = [random.integers(97, 122, size).tolist() for size in (5, 8, 6, 7, 5)]
    with jax.set_mesh(mesh):
        whole = generate(
            abstract_model(CONFIG).graph,
            model,
            [prompt[-6:] for prompt in prompts],
            tokens=8,
            sampling=GREEDY,
            key=jax.random.key(0),
        )
    texts = [ByteTokenizer().decode(ids) for ids in whole]
    stops = ["", texts[0][6:8], texts[1][2]]  # an empty one stops nothing
    found = written(CONFIG, model, prompts, stops=stops, tokens=8, max_length=14, mesh=mesh)
    assert found == [before_stops(text, stops[1:]) for text in texts]
    assert len(found[0]) <= 6 and len(found[1]) <= 2 and len(set(texts)) > 1


def test_texts_are_those_of_lm_eval_with_transformers():
    """Recorded by scripts/peers/harness.py, which lets lm-eval run the same weights in PyTorch."""
    config, params = import_folder(GOLDENS / "huggingface" / "llama")
    tokenizer = HuggingFaceTokenizer(path=str(GOLDENS / "harness" / "tokenizer.json"), end_of_document="</s>")
    answers = json.loads((GOLDENS / "harness" / "golden.json").read_text())["answers"]
    prompts = [tokenizer.encode_prompt(context) for context, _ in answers]
    assert max(map(len, prompts)) > config.max_length
    options = {"tokenizer": tokenizer, "stops": ["K", "5"], "tokens": 20, "batch_size": len(prompts)}
    assert written(config, ModelState(params), prompts, **options) == [text for _, text in answers]
    assert len({len(text) for _, text in answers}) > 1


@pytest.mark.parametrize("tokens", [0, 32])
def test_more_tokens_than_the_context_has_room_for_are_refused(tokens):
    with refused(ValueError, tokens, 32):
        written(CONFIG, random_model(CONFIG), [[1]], stops=[], tokens=tokens)
