"""A key takes any class under its abstract base, and an error lists those there are."""

from dataclasses import dataclass

import optax
import pytest

from jaxtrain.cli.config_types import convert, describe_hint, subclasses
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.schedules import Constant, Schedule


def _own() -> type[Optimizer]:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Own(Optimizer):
        learning_rate: Schedule

        def build(self, rate: optax.Schedule, names: dict) -> optax.GradientTransformation:
            return optax.sgd(rate)

    return Own


def test_a_class_from_elsewhere_is_taken_where_its_base_is_asked_for():
    own = _own()(learning_rate=Constant(peak=1.0))
    assert convert(own, Optimizer) is own and convert(own, Optimizer | None) is own
    assert subclasses(Optimizer)["Own"] is type(own)
    for other in (own.learning_rate, _own(), "Own", 3):
        with pytest.raises(TypeError):
            convert(other, Optimizer)


def test_a_base_stands_for_its_classes_where_it_is_described():
    schedules = describe_hint(Schedule)
    assert {"Constant", "Cosine", "WarmupStableDecay"} <= set(schedules.split(" | ")) and "Schedule" not in schedules
    assert describe_hint(Schedule | None) == f"{schedules} | None"
    found = set(describe_hint(Optimizer).split(" | "))
    assert {"AdamW", "AdamW8bit", "Adafactor", "Lion", "Muon", "ScheduleFree"} <= found and "Optimizer" not in found
