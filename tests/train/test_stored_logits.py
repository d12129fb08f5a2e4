"""Logits that a teacher gave once: what is stored, what it is refused for, and a run that learns from them."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from messages import refused
from tiny import RandomTeacher, random_model, variant
from tolerances import EXACT, SAME_LOGITS, assert_close

from jaxtrain.data import ConcatenateAndSplit, open_rows
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.param import merge
from jaxtrain.objectives.distill import Distill
from jaxtrain.shapes import Batch
from jaxtrain.train.feed import Feed, rows_taken
from jaxtrain.train.logits import LogitsFolder, write_logits
from jaxtrain.train.logits.folder import write_folder
from jaxtrain.train.phases import Phase
from jaxtrain.train.teachers import StoredLogits

TEACHER = RandomTeacher(model=variant(vocab_size=320, d_model=44, repeats=1))
K, STEPS, ONE = 8, 4, MeshConfig(fsdp=1)


def _config(data, teacher, /, **changes):
    model = variant(vocab_size=320, repeats=1, teacher=teacher)
    given = {"data": data, "model": model, "objective": Distill(hard=0.3, top_k=K), "steps": STEPS, "save_every": 2}
    return runs.tiny_run(**(given | changes))


def _write(config, path: Path) -> LogitsFolder:
    return write_logits(
        path,
        model=config.model,
        objective=config.objective,
        data=config.data,
        phases=config.phases,
        seed=config.seed,
        mesh=ONE.build(jax.devices()[:1]),
        command="jaxtrain logits mine.gin " + path.name,
    )


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """The data, the losses and the last state of a run whose teacher is there, and the folder of its logits."""
    folder = tmp_path_factory.mktemp("stored")
    data = runs.write_corpus(folder / "corpus")
    config = _config(data, TEACHER)
    _write(config, folder / "logits")
    result = config.trainer(folder / "online", devices=jax.devices()[:1]).train()
    return data, runs.losses(folder / "online"), result.state.params, str(folder / "logits")


def test_a_run_without_the_teacher_has_the_same_losses_and_goes_on_exactly(online, tmp_path):
    data, losses, params, path = online
    config = _config(data, StoredLogits.of(path))
    crashing = dataclasses.replace(config, hooks=(*config.hooks, runs.CrashAfter(step=2)))
    with pytest.raises(runs.Crash):
        crashing.trainer(tmp_path / "run", devices=jax.devices()[:1]).train()
    _check_rows_of_other_batches(config, tmp_path / "run", path)
    state = config.trainer(tmp_path / "run", devices=jax.devices()[:1]).train().state
    assert state.model.frozen == {}
    assert_close(runs.losses(tmp_path / "run"), losses, EXACT)
    assert_close(runs.host_copy(state.params), runs.host_copy(params), EXACT)


def _check_rows_of_other_batches(config, folder: Path, path: str) -> None:
    """Two of four steps of 8 rows are made: 16 of the stored 32 rows remain, however many the phases name."""

    def trainer(steps: int, rows: int):
        phase = Phase(steps=steps, batch_size=rows, sequence_length=16)
        return dataclasses.replace(config, phases=(phase,)).trainer(folder, devices=jax.devices()[:1])

    trainer(3, 16).check_start(2)  # as a new run it would take 48
    trainer(6, 4).check_start(2)
    with refused(ValueError, f"path={path!r}", 32, 16 + 5 * 4):
        trainer(7, 4).train()  # as a new run it would take 28


def test_the_step_has_no_teacher(online):
    """Whose width nothing else has."""
    data, _, _, path = online

    def text(teacher):
        config = _config(data, teacher)
        recipe = config.recipe
        return str(recipe.program(recipe.spans[0], ONE.build(jax.devices()[:1])).trace().jaxpr)

    online, stored = text(TEACHER), text(StoredLogits.of(path))
    assert "top_k" in online and re.search(r"\b44\b", online)
    assert "top_k" not in stored and not re.search(r"\b44\b", stored)


def test_every_row_has_the_likeliest_words_on_any_mesh(online):
    data, _, _, path = online
    config = _config(data, StoredLogits.of(path))
    [phase] = config.phases
    feed = Feed(
        data, phase, seed=0, mesh=MeshConfig(data=2, fsdp=2, tensor=2).build(), taken={}, teacher=config.model.teacher
    )
    teacher = merge(abstract_model(TEACHER.model).graph, random_model(TEACHER.model, TEACHER.seed))
    for _ in range(STEPS):
        batch = jax.device_get(next(feed))
    logits = np.asarray(jax.jit(lambda batch: teacher(batch))(batch._replace(hints={})))
    words = np.argsort(-logits, axis=-1, stable=True)[..., :K]
    np.testing.assert_array_equal(batch.hints["words"], words)
    assert_close(batch.hints["logits"], np.take_along_axis(logits, words, axis=-1), SAME_LOGITS)


def test_a_token_takes_six_bytes_for_each_word(online):
    data, _, _, path = online
    meta = json.loads((Path(path) / "meta.json").read_text())
    [stream] = meta["streams"].values()
    [phase] = _config(data, TEACHER).phases
    assert sum(size for size, _ in stream["files"].values()) == STEPS * phase.tokens_per_step * 6 * K


def test_fewer_words_are_the_first_of_more(online):
    data, _, _, path = online
    batch = Batch(*np.zeros((5, 2, 3)), hints={"words": np.arange(48).reshape(2, 3, K)})
    few = Distill(top_k=3).prepared(None, batch).hints
    np.testing.assert_array_equal(few["words"], batch.hints["words"][..., :3])
    with refused(ValueError, "objective.top_k=9", K):
        _config(data, StoredLogits.of(path), objective=Distill(top_k=9))


def _changed(name: str, data, folder: Path) -> dict:
    """Return what makes another run than the logits were stored for."""
    return {
        "more steps": {"steps": STEPS + 1},
        "sequence length": {"phases": (Phase(steps=STEPS, batch_size=8, sequence_length=32),)},
        "packing": {"data": dataclasses.replace(data, packing=ConcatenateAndSplit())},
        "seed": {"seed": 1},
        "text": {"data": runs.write_corpus(folder, alphabet="xyz \n")},
    }[name]


@pytest.mark.parametrize("name", ["more steps", "sequence length", "packing", "seed", "text"])
def test_other_rows_are_refused(name, online, tmp_path):
    data, _, _, path = online
    config = _config(data, StoredLogits.of(path), **_changed(name, data, tmp_path / "text"))
    varies = {"<text>": r"text [0-9a-f]{32}"} if name != "more steps" else None
    with refused(ValueError, f"path={path!r}", "jaxtrain logits mine.gin logits", varies=varies):
        config.train(tmp_path / "run")


def test_the_logits_of_another_teacher_are_refused(online, tmp_path):
    data, _, _, path = online
    other = dataclasses.replace(TEACHER, seed=3)
    teacher = StoredLogits.of(shutil.copytree(path, str(tmp_path / "logits")))
    shutil.rmtree(teacher.path)
    later = _write(_config(data, other), tmp_path / "logits")
    assert teacher.fingerprint != later.fingerprint
    varies = {"<fingerprint>": r"'[0-9a-f]{32}'"}
    with refused(ValueError, teacher.fingerprint, later.fingerprint, varies=varies):
        _config(data, teacher).train(tmp_path / "run")


def test_a_damaged_file_and_a_folder_without_logits_are_refused(online, tmp_path):
    data, _, _, written = online
    path = tmp_path / "logits"
    with refused(ValueError, f"path={str(path)!r}", f"jaxtrain logits CONFIG {path}"):
        StoredLogits.of(str(path))
    shutil.copytree(written, path)
    config = _config(data, StoredLogits.of(str(path)))
    with refused(ValueError, "exists"):
        _write(_config(data, TEACHER), path)
    with (path / "0-words.bin").open("r+b") as file:
        file.write(b"\xff")
    with refused(ValueError, path / "0-words.bin"):
        config.train(tmp_path / "run")
    (path / "meta.json").write_text("{")
    with refused(ValueError, path / "meta.json"):
        StoredLogits.of(str(path))


def test_a_byte_far_from_the_beginning_is_checked(tmp_path):
    """The checksum of a token store is of the first 64 MiB alone; here that is all but the last word."""
    words, logits = (np.zeros((1, 2**24 + 1, 1), dtype) for dtype in (np.uint16, np.float32))
    size = {"top_k": 1, "vocab_size": 320, "command": "jaxtrain logits mine.gin"}
    folder = write_folder(tmp_path / "logits", [("rows", iter([(words, logits)]))], teacher="", **size)
    folder.rows("rows", 1)
    with (folder.path / "0-logits.bin").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with refused(ValueError, folder.path / "0-logits.bin"):
        folder.rows("rows", 1)


def test_a_teacher_must_be_there_to_be_asked(online):
    data, _, _, path = online
    with refused(ValueError, "model.teacher=StoredLogits(...)"):
        _write(_config(data, StoredLogits.of(path)), Path(path).with_name("new"))
    with refused(ValueError, "objective.top_k=None"):
        _write(_config(data, TEACHER, objective=Distill()), Path(path).with_name("new"))


def test_phases_of_one_stream_add_up(online):
    data, *_ = online
    phases = tuple(Phase(steps=steps, batch_size=rows, sequence_length=16) for steps, rows in ((3, 8), (2, 4)))
    [taken] = rows_taken(phases, data, 0)
    assert taken.rows == 3 * 8 + 2 * 4
    assert len(open_rows(data, split="train", sequence_length=16, seed=0)) > taken.rows
