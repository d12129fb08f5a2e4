"""Domains of a text: tf-idf as written down, groups of one size, and sources of one group each."""

import itertools

import numpy as np
import pytest
from messages import check, refusal, refused

from jaxtrain.cli.main import main
from jaxtrain.data import ByteTokenizer, DataConfig, TextFiles, open_stores
from jaxtrain.data.domains import DomainsFile, counted, embedded, inverse_frequencies
from jaxtrain.data.domains.clusters import balanced
from jaxtrain.data.sources import Domain

ALPHABETS = ("abcdefgh", "01234567", "ABCDEFGH")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Eleven documents of three alphabets, in turn."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(11):
        random = np.random.default_rng(number)
        letters = random.choice(list(ALPHABETS[number % 3]), 80)
        (folder / f"{number:02}.txt").write_text("".join(letters))
    return TextFiles(glob=f"{folder}/*.txt")


def store_of(source):
    [store] = open_stores(DataConfig(source=source))
    return store


def test_embeddings_are_term_frequencies_times_inverse_document_frequencies_as_unit_vectors():
    documents = [np.array(ids) for ids in ([0, 0, 1, 9], [1, 2, 9], [3, 3, 3, 2, 9], [9])]
    counts = counted(documents, without=(9,))
    dense = np.array([[np.sum(document == term) for term in range(9)] for document in documents], float)
    frequencies = np.log(5 / (1 + (dense > 0).sum(0))) + 1
    np.testing.assert_allclose(inverse_frequencies(counts, 9), frequencies)
    expected = dense * frequencies
    expected[:3] /= np.linalg.norm(expected[:3], axis=1, keepdims=True)
    rows = embedded(counts, frequencies)
    np.testing.assert_allclose(rows.products(np.eye(9)), expected)
    np.testing.assert_allclose(
        rows.means(np.array([0, 1, 0, 1]), 2, 9), [expected[::2].mean(0), expected[1::2].mean(0)]
    )


@pytest.mark.parametrize(("count", "groups"), [(11, 3), (12, 4), (7, 7), (5, 1), (1000, 6)])
def test_sizes_differ_by_at_most_one(count, groups):
    labels = balanced(np.random.default_rng(count).random((count, groups)) * [1.0, *[3.0] * (groups - 1)])
    sizes = np.bincount(labels, minlength=groups)
    assert sizes.sum() == count and sizes.max() - sizes.min() <= 1


def test_two_groups_are_assigned_as_well_as_can_be():
    for seed in range(20):
        distances = np.random.default_rng(seed).random((8, 2))
        labels = balanced(distances)
        halves = itertools.combinations(range(8), 4)
        best = min(sum(distances[i, 0 if i in half else 1] for i in range(8)) for half in map(set, halves))
        assert distances[np.arange(8), labels].sum() == pytest.approx(best)


def test_documents_of_one_alphabet_are_one_domain(text):
    domains = DomainsFile.of(store_of(text), ByteTokenizer(), number=3)
    assert len({tuple(domains.labels[start::3]) for start in range(3)}) == 3
    assert all(len(set(domains.labels[start::3])) == 1 for start in range(3))
    assert sorted(np.bincount(domains.labels)) == [3, 4, 4]


def test_the_same_seed_finds_the_same_groups_and_too_many_are_refused(text):
    store = store_of(text)
    first, again = (DomainsFile.of(store, ByteTokenizer(), number=4, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.labels, again.labels)
    with refused(ValueError, "groups=12", 11):
        DomainsFile.of(store, ByteTokenizer(), number=12)


def test_the_sources_of_all_domains_have_each_document_once(text, tmp_path, capsys):
    file = tmp_path / "domains.npz"
    words = ["configs/quickstart.gin", "--set", f"data.source=@TextFiles(glob={text.glob!r})"]
    assert main(["domains", *words[:1], str(file), "--number", "3", *words[1:]]) == 0
    said = capsys.readouterr().out
    assert "domain 2: " in said and "--grid data.source.index=0,1,2" in said
    parts = [Domain(source=text, path=str(file), index=index) for index in range(3)]
    keys = [[document.key for document in part.documents()] for part in parts]
    assert sorted(itertools.chain(*keys)) == [document.key for document in text.documents()]
    stores = [store_of(part) for part in parts]
    assert [[store.key(i) for i in range(len(store.starts))] for store in stores] == keys
    assert len({part.fingerprint() for part in parts}) == 3
    check(refusal(capsys, "domains", *words[:1], file, "--number", 3, *words[1:]), file, "exists")


def test_domains_of_another_text_are_refused(text, tmp_path):
    DomainsFile.of(store_of(text), ByteTokenizer(), number=2).write(tmp_path / "domains.npz")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "zz.txt").write_text("abc")
    path = str(tmp_path / "domains.npz")
    with refused(ValueError, "zz.txt"):
        list(Domain(source=TextFiles(glob=f"{tmp_path}/text/*.txt"), path=path, index=0).documents())
    with refused(ValueError, "index=2", "2 domains"):
        Domain(source=text, path=path, index=2).check()
    (tmp_path / "other.npz").write_text("no")
    with refused(ValueError, "other.npz", recorded=False):
        Domain(source=text, path=str(tmp_path / "other.npz"), index=0).check()
