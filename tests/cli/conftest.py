"""One tiny trained run that the tests of the commands share; none of them may change it."""

import contextlib
import io

import pytest
from built_once import built_once
from tiny_run import TinyRun, command, content, write_text


@pytest.fixture(scope="module", autouse=True)
def _programs_are_built_once():
    with built_once():
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tiny_run(text, tmp_path_factory):
    from jaxtrain.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("JAXTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("COLUMNS", "200")
        assert main([*command(text), "--run", str(folder)]) == 0
    before = content(folder)
    yield TinyRun(folder, command(text), printed.getvalue())
    assert content(folder) == before, "a test changed the run that all share"
