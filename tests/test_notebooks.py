"""The notebooks run from first cell to last in a kernel of their own, made small through their cell of parameters."""

import base64
from pathlib import Path

import nbformat
import pytest
from devices import xla_flags
from messages import refused
from nbclient import NotebookClient
from patience import PATIENCE_SECONDS

from jaxtrain.cli.config_file import load
from jaxtrain.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "notebooks" / "quickstart.ipynb"
SCHEDULES = ROOT / "notebooks" / "schedules.ipynb"
SMALL = "STEPS, LAYERS, BATCH_SIZE, RUN = 3, 1, 2, 'run'"


def tagged(notebook, tag):
    [cell] = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
    return cell


def pictures(notebook):
    """Return how many pictures it drew."""
    outputs = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    drawn = [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]
    assert all(picture.startswith(b"\x89PNG") for picture in drawn)
    return len(drawn)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def execute(notebook, tmp_path_factory, flags):
    """Run a notebook in an empty folder, with XLA_FLAGS as given; return that folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nprint('gin' in sys.modules)"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / ".jupyter"))
        patch.setenv("XLA_FLAGS", flags)
        options = {"timeout": PATIENCE_SECONDS, "startup_timeout": PATIENCE_SECONDS}
        NotebookClient(notebook, **options, resources={"metadata": {"path": str(folder)}}).execute()
    return folder


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The quickstart with few steps of a small model, and its folder."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    tagged(notebook, "parameters").source = SMALL
    return notebook, execute(notebook, tmp_path_factory, flags=xla_flags(devices=1))


@pytest.fixture(scope="module")
def schedules(tmp_path_factory):
    """The notebook about schedules, with fewer steps of training."""
    notebook = nbformat.read(SCHEDULES, as_version=4)
    training = tagged(notebook, "training")
    assert training.source.count("STEPS, RUNS = 20,") == 1
    training.source = training.source.replace("STEPS, RUNS = 20,", "STEPS, RUNS = 3,")
    execute(notebook, tmp_path_factory, flags=xla_flags(devices=1))  # it asks for more
    return notebook


def test_quickstart_is_the_quickstart_of_the_command_line():
    configuration = tagged(nbformat.read(QUICKSTART, as_version=4), "configuration").source
    names = {}
    exec(tagged(nbformat.read(QUICKSTART, as_version=4), "parameters").source, names)
    exec(configuration, names)
    assert names["config"] == load(ROOT / "configs" / "quickstart.gin").config


@pytest.mark.parametrize("notebook", [QUICKSTART, SCHEDULES], ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook):
    for cell in nbformat.read(notebook, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_quickstart_trains_draws_and_writes(executed):
    notebook, folder = executed
    assert [record["step"] for record in read_metrics(folder / "run" / "metrics.jsonl")] == [1, 2, 3]
    assert pictures(notebook) == 1
    text = printed(tagged(notebook, "writing"))
    assert text.count("-" * 80) == 3
    assert text.startswith("def ") and "\nimport " in text and '\n"""Return ' in text


def test_quickstart_installs_nothing_where_jaxtrain_is_at_hand(executed):
    install = next(cell for cell in executed[0].cells if "%pip install" in cell.source)
    assert not install.outputs


@pytest.mark.parametrize("notebook", [QUICKSTART, SCHEDULES], ids=lambda path: path.stem)
def test_notebooks_install_their_checkout_or_ask_for_one(notebook, tmp_path, monkeypatch):
    [cell] = [cell for cell in nbformat.read(notebook, as_version=4).cells if "%pip install" in cell.source]
    source, magic = cell.source.split("    %pip ")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(notebook.parent)
    exec(source, names := {})
    assert magic.format(**names) == f'install -q "{ROOT}"'
    monkeypatch.chdir(tmp_path)
    with refused(SystemExit, "clone"):
        exec(source, {})


def test_training_from_python_needs_no_gin(schedules):
    assert printed(schedules.cells[-1]) == "False\n"


def test_the_run_of_a_notebook_is_one_for_the_commands(executed):
    notebook, folder = executed
    [evaluated] = [cell for cell in notebook.cells if "run.evaluate" in cell.source]
    assert printed(evaluated).startswith("step 3: validation loss ")
    exec("\n".join(tagged(notebook, tag).source for tag in ("parameters", "configuration")), names := {})
    assert load(folder / "run").config == names["config"]


def test_schedules_are_drawn_compared_and_checked(schedules):
    assert pictures(schedules) == 9
    assert "deadlocks" in printed(tagged(schedules, "broken"))
    [table] = [
        output.data["text/markdown"]
        for cell in schedules.cells
        for output in cell.get("outputs", ())
        if "text/markdown" in output.get("data", ())
    ]
    assert "| PairedInterleaved | 2 | 15.8% | 15.8% | 5.5 |" in table  # (p-1)/(vm+p-1), whatever the costs


def test_a_pipeline_learns_what_one_device_does(schedules):
    assert float(printed(tagged(schedules, "losses")).split()[2]) < 1e-5
