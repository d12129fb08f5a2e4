"""What cannot fit is refused at once, with what it would need; what might fit is not."""

import dataclasses

import jax
import pytest
import runs
from messages import refused
from tiny import bytes_of, variant

from jaxtrain.train import needs
from jaxtrain.train.hooks import ExponentialMovingAverage, LatestWeightAverage, Sample
from jaxtrain.train.needs import Need, Room, check_evaluation, check_run, most_room, room_of
from jaxtrain.train.phases import Phase
from jaxtrain.train.state import initial_model

PHASE = Phase(steps=2, batch_size=8, sequence_length=16)
SAMPLE = Sample(every_steps=1, prompt="a", tokens=10**11)


def check(*, model=None, phase=PHASE, hooks=(), microbatches=1, room=None):
    check_run(
        model=model or variant(),
        optimizer=runs.OPTIMIZER,
        clip_norm=1.0,
        phases=(PHASE, phase),
        hooks=hooks,
        microbatches=microbatches,
        room=room or room_of(jax.devices()),
    )


@pytest.mark.parametrize(
    ("case", "facts"),
    [
        ({"model": variant(repeats=2 * 10**9)}, ("74.2 TB", "18,560,000,004,128", "model.repeats")),
        ({"model": variant(vocab_size=10**18)}, ("256 EB", "64,000,000,000,000,018,592", "model.vocab_size")),
        (
            {"hooks": (LatestWeightAverage(every_steps=1, window=10**9),)},
            ("1,000,000,000", "hooks[0]"),
        ),
        ({"hooks": (SAMPLE,)}, ("25.6 TB", "100,000,000,000", "hooks[0]")),
        ({"phase": dataclasses.replace(PHASE, batch_size=8 * 10**12)}, ("phases[1].batch_size=8000000000000",)),
        (
            {"phase": dataclasses.replace(PHASE, sequence_length=10**12)},
            ("phases[1].batch_size=8", "sequence_length=1000000000000"),
        ),
    ],
    ids=["repeats", "vocabulary", "averages", "sample", "rows", "length"],
)
def test_what_cannot_fit_is_refused_with_what_it_would_need(case, facts):
    with refused(ValueError, *facts, varies={"<memory>": r"(?<=machines have )[\d.]+ .?B"}) as error:
        check(**case)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "case",
    [
        {"model": variant(d_model=2 * 10**9)},
        {"model": variant(vocab_size=10**18)},
        {"phase": dataclasses.replace(PHASE, batch_size=8 * 10**15)},
    ],
)
def test_what_no_devices_have_is_not_compiled_either(case):
    with pytest.raises(ValueError, match=r"^this needs \S+ .B .* the (devices|machines) have \S+ .?B:"):
        check(**case, room=most_room(4))


def test_a_container_has_the_memory_that_it_may_use(tmp_path, monkeypatch):
    limit, none = tmp_path / "memory.max", tmp_path / "unlimited"
    limit.write_text("1000\n")
    none.write_text("max\n")
    monkeypatch.setattr(needs, "_LIMITS", (tmp_path / "absent", none))
    assert room_of(jax.devices()).hosts > 1000
    monkeypatch.setattr(needs, "_LIMITS", (none, limit))
    assert room_of(jax.devices()).hosts == 1000


def test_what_may_fit_is_not_refused():
    check(hooks=(ExponentialMovingAverage(), LatestWeightAverage(every_steps=1), dataclasses.replace(SAMPLE, tokens=4)))


def test_parameters_and_optimizer_state_are_counted_exactly():
    params = jax.eval_shape(lambda: initial_model(variant(), jax.random.key(0)))
    assert needs.parameters(variant()).size == bytes_of(params)
    counts = 2  # of updates, and of steps of the schedule; int32
    assert needs._optimizer_state(variant(), runs.OPTIMIZER, 1.0).size == 2 * bytes_of(params) + 4 * counts


def test_microbatches_and_tiles_of_the_vocabulary_need_less(monkeypatch):
    whole = variant(vocab_size=64)
    hidden, logits = 8 * 16 * 32 * 4, 8 * 16 * 64 * 4
    assert needs.batch(PHASE, "phases[0]", whole, 1)[1].size == hidden + logits
    assert needs.batch(PHASE, "phases[0]", whole, 4)[1].size == (hidden + logits) // 4
    monkeypatch.setattr(needs, "TILE", 16)
    assert needs.batch(PHASE, "phases[0]", whole, 1)[1].size == hidden + logits // 4


def test_devices_with_memory_of_their_own_are_compared_apart():
    room = Room(hosts=100, devices=10)
    needs._check([Need(90, "a batch", on_host=True), Need(9, "parameters")], room)
    with refused(ValueError, "needs 11 bytes", "devices have 10 bytes", "11 bytes for parameters"):
        needs._check([Need(90, "a batch", on_host=True), Need(11, "parameters")], room)
    with refused(ValueError, "needs 101 bytes", "machines have 100 bytes"):
        needs._check([Need(101, "a batch", on_host=True), Need(9, "parameters")], room)
    with refused(ValueError, "needs 101 bytes", "60 bytes for a batch, 41 bytes for parameters"):
        needs._check([Need(60, "a batch", on_host=True), Need(41, "parameters")], Room(hosts=100, devices=0))


def test_an_evaluation_that_cannot_fit_is_refused():
    check_evaluation(variant(), PHASE, jax.devices())
    with pytest.raises(ValueError, match=r"phases\[-1\].batch_size=8000000000000"):
        check_evaluation(variant(), dataclasses.replace(PHASE, batch_size=8 * 10**12), jax.devices())
