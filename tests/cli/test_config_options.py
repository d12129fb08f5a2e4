"""`jaxtrain config options`, and the list of techniques: made from the classes, never kept by hand."""

import inspect
from pathlib import Path

import pytest
from messages import check, refusal

from jaxtrain.cli import techniques
from jaxtrain.cli.config_options import options, paper, summary
from jaxtrain.cli.config_types import subclasses
from jaxtrain.cli.main import main
from jaxtrain.nn.masks.base import Mask
from jaxtrain.optim.lion import Lion
from jaxtrain.technique import Technique, lacking

ROOT = Path(__file__).parents[2]


def rows(capsys, *words: str) -> list[list[str]]:
    assert main(["config", "options", *words]) == 0
    return [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line]


def test_a_key_that_takes_a_base_lists_its_classes_with_docstring_and_paper(capsys):
    found = {row[0]: row[2] for row in rows(capsys, "optimizer")}
    assert found["config.TrainConfig.optimizer"] == "required"
    assert found["@lion.Lion()"].startswith(summary(Lion))
    assert found["@lion.Lion()"].endswith(" arXiv:2302.06675")


def test_the_classes_of_a_base_that_asks_for_nothing_are_listed_too(capsys):
    names = [row[0] for row in rows(capsys, "model.pattern.mlp.balances")]
    assert {"@load_loss.LoadLoss()", "@router_bias.RouterBias()", "@row_loss.RowLoss()"} <= set(names)


@pytest.mark.parametrize("key", ["model.pattern.mixer", "model.pattern[0].mixer", "model.pattern.0.mixer"])
def test_indices_may_be_left_out(key, capsys):
    names = [row[0] for row in rows(capsys, key)]
    assert names[0] == "block.BlockConfig.mixer" and "@attention.AttentionConfig()" in names


def test_a_key_below_an_open_one_is_that_of_every_class_that_has_it(capsys):
    found = {row[0]: row[1:] for row in rows(capsys, "gradients.schedule.chunks_per_stage")}
    assert found["interleaved.Interleaved.chunks_per_stage"] == ["int", "2"] and len(found) > 2


def test_a_plain_key_has_type_and_default_and_without_a_key_all_are_listed(capsys):
    assert rows(capsys, "clip_norm") == [["config.TrainConfig.clip_norm", "float", "| None  1.0"]]
    assert "config.TrainConfig.gradients" in [row[0] for row in rows(capsys)]
    assert "mesh.MeshConfig.fsdp" in [row[0] for row in rows(capsys, "mesh")]


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("model.patern", ("model", "'patern'", "'model.pattern'")),
        ("optimiser", ("config.TrainConfig", "'optimiser'", "'optimizer'")),
        ("seed.x", ("seed", "'x'")),
        ("", ("config.TrainConfig", "''")),
    ],
    ids=["patern", "optimiser", "seed.x", "nothing"],
)
def test_a_key_that_is_none_is_refused_with_the_nearest(key, facts, capsys):
    check(refusal(capsys, "config", "options", key), *facts)


def test_every_technique_says_what_it_does_and_where_it_is_from():
    techniques.text()  # which imports all of them
    silent = [
        cls.__name__
        for base in techniques._bases(Technique)
        for cls in subclasses(base).values()
        if cls.__module__.startswith("jaxtrain.") and not (summary(cls) and paper(cls)) or list(lacking(cls))
    ]
    assert not silent


def test_every_class_that_others_are_made_of_is_abstract_so_that_the_list_has_a_section_for_it():
    techniques.text()
    (kinds, known) = ([Technique], set[type]())
    while kinds:
        below = [cls for cls in kinds.pop().__subclasses__() if cls.__module__.startswith("jaxtrain.")]
        kinds += below
        known.update(below)
    assert len(known) > 200
    for cls in known:
        assert inspect.isabstract(cls) or not known.intersection(cls.__subclasses__()), cls
        assert any(map(inspect.isabstract, cls.__mro__)), cls


def test_the_list_of_techniques_is_that_of_the_classes():
    path = ROOT / "docs" / "techniques.md"
    assert path.read_text() == techniques.text(), "python -m jaxtrain.cli.techniques > docs/techniques.md"


def test_a_subclass_that_is_no_dataclass_is_no_option():
    class Plain(Mask):
        span = None

    assert not inspect.isabstract(Plain) and Plain not in options(Mask)
