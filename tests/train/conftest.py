"""What tests of training share: one corpus, and programs that a process builds once."""

from collections.abc import Callable

import pytest
import runs
from built_once import built_once

from jaxtrain.data import DataConfig


@pytest.fixture(scope="module", autouse=True)
def _programs_are_built_once():
    with built_once():
        yield


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    runs.kill_what_is_left()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> DataConfig:
    return runs.write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory) -> list[float]:
    """The losses of 60 steps of runs.tiny_run, not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.train(runs.tiny_run(data, steps=60, save_every=60), folder)
    return runs.losses(folder)


@pytest.fixture
def uninterrupted(data, whole, tmp_path) -> Callable[[int], list[float]]:
    """Returns the losses of so many steps: a machine that is slow to stop a run has made more than those of `whole`."""

    def losses(steps: int) -> list[float]:
        if steps <= len(whole):
            return whole[:steps]
        runs.train(runs.tiny_run(data, steps=steps, save_every=steps), tmp_path / "uninterrupted")
        return runs.losses(tmp_path / "uninterrupted")

    return losses
