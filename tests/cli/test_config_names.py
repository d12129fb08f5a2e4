"""Names that a user may have meant, in the real tree of configurations."""

import pytest
from messages import refusal

from jaxtrain.cli import config_names
from jaxtrain.cli.config_names import nearest, synonyms
from jaxtrain.cli.config_options import keys_of
from jaxtrain.config import TrainConfig

QUICKSTART = "configs/quickstart.gin"
MEANT = {
    "lr": ("optimizer.learning_rate", "optimizer.learning_rate.peak"),
    "learning_rate": ("optimizer.learning_rate", "optimizer.learning_rate.peak"),
    "steps": ("phases[0].steps",),
    "batch_size": ("phases[0].batch_size",),
    "model.layers": ("repeats",),
    "model.num_heads": ("model.pattern[0].mixer.heads",),
    "phases[0].weight_decy": ("optimizer.weight_decay",),
}


@pytest.mark.parametrize("key", MEANT)
def test_the_right_place_is_named_wherever_it_is(capsys, key):
    line = refusal(capsys, "config", "show", QUICKSTART, "--set", f"{key}=1")
    assert line.startswith(f"--set {key}=1: ") and all(repr(path) in line for path in MEANT[key])


@pytest.mark.parametrize("key", ["zzz", "model.epochs", "optimizer.q"])
def test_nothing_is_said_where_nothing_is_near(capsys, key):
    line = refusal(capsys, "config", "show", QUICKSTART, "--set", f"{key}=1")
    assert line.endswith(f"has no key {key.rpartition('.')[2]!r}")


def test_what_fits_a_key_is_listed_where_no_class_is_near(capsys):
    line = refusal(capsys, "config", "show", QUICKSTART, "--set", "objective=@Contrastive()")
    assert line.endswith("there is no class 'Contrastive'; objective takes Distill, Entropy, NextToken")


def test_other_words_stand_for_keys_that_exist():
    keys, seen, classes = set(), set(), [TrainConfig]
    while classes:
        found = [key for cls in classes for key in keys_of(cls)]
        keys.update(key.name for key in found)
        seen.update(classes)
        classes = list({cls for key in found for cls in key.classes} - seen)
    assert set(config_names._OTHER_WORDS) <= keys
    words = {word for words in config_names._OTHER_WORDS.values() for word in words.split()}
    # A number is no learning_rate: that is its peak. Blocks have a `depth`, and convolutions a `width`.
    assert words & keys == {"learning_rate", "depth", "width"}


def test_a_name_is_itself_before_it_stands_for_another():
    assert synonyms("learning_rate", ["peak", "learning_rate", "steps"]) == ["learning_rate", "peak"]
    assert synonyms("LR", ["steps"]) == []


def test_a_part_of_a_name_is_near_and_a_letter_is_not():
    assert nearest("chunk", ["chunks_per_stage", "waves"]).endswith("'chunks_per_stage'")
    assert nearest("c", ["chunks_per_stage", "waves"]) == nearest("", ["waves"]) == ""
