"""Experts that were trained apart: their gates by hand, and the mixture of their runs as one model."""

import dataclasses

import jax
import numpy as np
import pytest
import runs
from messages import refused
from tiny import packed_batch
from tolerances import BY_DISTANCE, CHANCES, POSTERIOR, assert_close

from jaxtrain.data import ByteTokenizer, DataConfig, Domain, TextFiles, open_stores
from jaxtrain.data.domains import DomainsFile, counted, embedded
from jaxtrain.runs import load_experts, load_run
from jaxtrain.train.gates import Nearest, Posterior

BATCH = packed_batch([[9, 6], [15]], 16, vocab_size=12)
LOG_PROBS = np.log(np.random.default_rng(0).dirichlet(np.ones(5), (3, 2, 16))[..., 0]).astype(np.float32)


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """The domains of documents of twelve tokens, of which the last ends a document."""
    random = np.random.default_rng(1)
    frequencies = np.append(random.uniform(1, 3, 11), 0)
    centres = np.append(random.dirichlet(np.ones(11), 3), np.zeros((3, 1)), axis=1)
    path = tmp_path_factory.mktemp("domains") / "domains.npz"
    found = DomainsFile(frequencies, centres, np.zeros(1, np.int64), np.zeros(1, np.uint64), "tokens")
    found.write(path)
    return found, str(path)


def weights(gate, batch=BATCH, log_probs=LOG_PROBS):
    return np.exp(jax.jit(gate.log_weights)(batch, log_probs))


def documents(batch):
    """Yield the row, and the places, of each document."""
    for row, segments in enumerate(batch.segment_ids):
        for segment in np.unique(segments):
            yield row, np.flatnonzero(segments == segment)


def test_the_posterior_is_bayes_rule_over_the_tokens_before():
    prior = (0.5, 0.3, 0.2)
    found = weights(Posterior(prior=prior))
    assert_close(found.sum(0), np.ones_like(found[0]), CHANCES)
    for row, places in documents(BATCH):
        for number, place in enumerate(places):
            joint = prior * np.exp(LOG_PROBS[:, row, places[:number]].astype(np.float64).sum(1))
            assert_close(found[:, row, place], joint / joint.sum(), POSTERIOR)


def test_weights_by_distance_are_those_of_the_embedded_context(domains):
    """The oracle embeds the beginning of each document as a document of its own."""
    file, path = domains
    found = weights(Nearest(path=path, temperature=0.3))
    assert_close(found.sum(0), np.ones_like(found[0]), CHANCES)
    for row, places in documents(BATCH):
        contexts = [np.asarray(BATCH.tokens)[row, places[: n + 1]] for n in range(len(places))]
        counts = counted(contexts, without=(11,))
        dense = embedded(counts, file.frequencies).products(np.eye(12))
        squares = ((dense[:, None] - file.centres) ** 2).sum(-1)
        expected = np.exp(-squares / 0.3)
        assert_close(found[:, row, places].T, expected / expected.sum(1, keepdims=True), BY_DISTANCE)


def test_a_low_temperature_and_one_expert_take_the_nearest(domains):
    _, path = domains
    nearest = weights(Nearest(path=path, temperature=0.3)).argmax(0)
    for gate in (Nearest(path=path, temperature=1e-5), Nearest(path=path, top_k=1)):
        np.testing.assert_array_equal(weights(gate), np.arange(3)[:, None, None] == nearest)
    two = weights(Nearest(path=path, top_k=2))
    assert ((two > 0).sum(0) == 2).all()
    assert_close(two.sum(0), np.ones_like(two[0]), CHANCES)


@pytest.mark.parametrize("kind", ["posterior", "nearest"])
def test_a_weight_depends_on_nothing_behind_its_place(kind, domains):
    gate = Posterior() if kind == "posterior" else Nearest(path=domains[1])
    tokens, said = np.array(BATCH.tokens), LOG_PROBS.copy()
    tokens[:, 5:], said[:, :, 4:] = tokens[:, 5:][:, ::-1], -9.0
    np.testing.assert_array_equal(weights(gate)[:, :, :5], weights(gate, BATCH._replace(tokens=tokens), said)[:, :, :5])
    assert (weights(gate)[:, :, 5:] != weights(gate, BATCH._replace(tokens=tokens), said)[:, :, 5:]).any()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A seed's run, and two experts that go on from it, each on the texts of one alphabet; the folder of all."""
    from jaxtrain.train.initial import FromRun

    folder = tmp_path_factory.mktemp("experts")
    for number, alphabet in enumerate(("abcd ", "0123\n")):
        runs.write_corpus(folder / f"text{number}", files=6, alphabet=alphabet)
    (folder / "text").mkdir()
    for number in range(12):
        source = folder / f"text{number % 2}" / f"document{number // 2}.txt"
        (folder / "text" / f"{number:02}.txt").write_text(source.read_text())
    text = TextFiles(glob=f"{folder}/text/*.txt")
    data = DataConfig(source=text, validation_fraction=0.3)
    [store] = open_stores(data)
    DomainsFile.of(store, ByteTokenizer(), number=2).write(folder / "domains.npz")
    seed = runs.tiny_run(data, steps=4, save_every=4)
    runs.train(seed, folder / "seed")
    for index in range(2):
        source = Domain(source=text, path=str(folder / "domains.npz"), index=index)
        initial = FromRun(path=str(folder / "seed"), model=seed.model)
        config = runs.tiny_run(dataclasses.replace(data, source=source), steps=12, save_every=12, initial=initial)
        runs.train(config, folder / str(index))
    return folder


def test_experts_know_their_own_domain_and_the_mixture_finds_it(trained):
    loaded = [load_run(trained / str(index)) for index in range(2)]
    apart = [[load.evaluate_on(other.validation_sets[""]).loss for other in loaded] for load in loaded]
    assert apart[0][0] < apart[1][0] - 0.2 and apart[1][1] < apart[0][1] - 0.2
    for gate in (Posterior(), Nearest(path=str(trained / "domains.npz"))):
        experts = load_experts([trained / "0", trained / "1"], by=gate)
        for own in range(2):
            assert experts.evaluate(own).loss < apart[own][own] + 0.1
    one = load_experts([trained / "0"], by=Posterior())
    assert one.evaluate().loss == pytest.approx(apart[0][0], rel=1e-6)
    prompt = "abcd ab"
    assert one.generate(prompt, tokens=8, temperature=0) == loaded[0].generate(prompt, tokens=8, temperature=0)
    mine = int(DomainsFile.read(trained / "domains.npz").labels[0])  # the domain of the letters
    nearest = Nearest(path=str(trained / "domains.npz"), top_k=1)
    written = load_experts([trained / "0", trained / "1"], by=nearest).generate(prompt, tokens=8, temperature=0)
    assert written == loaded[mine].generate(prompt, tokens=8, temperature=0)


def test_one_expert_trained_anew_leaves_the_others_as_they_are(trained, tmp_path):
    """Each expert is a run of its own: with its own folder, checkpoints and lock."""
    before = runs.content(trained / "1")
    config = load_run(trained / "0").config
    again = config.train(tmp_path / "again").state.params
    restored = load_run(trained / "0").model.params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(restored))
    assert runs.content(trained / "1") == before


def test_a_gate_of_other_experts_is_refused(domains, trained):
    folders = [trained / "0", trained / "1"]
    for gate, facts in (
        (Posterior(prior=(0.5, 0.25, 0.25)), ("prior=(0.5, 0.25, 0.25)", "2 experts")),
        (Nearest(path=domains[1]), ("3 domains", "2 experts")),
        (Nearest(path=str(trained / "domains.npz"), top_k=3), ("top_k=3",)),
    ):
        with refused(ValueError, *facts):
            load_experts(folders, by=gate)
    with refused(ValueError, "prior=(0.5, 0.6)"):
        Posterior(prior=(0.5, 0.6))
