"""The notebooks run from first cell to last in a kernel of their own, made small through their cell of parameters."""

import base64
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jaxtrain.cli.config_file import load
from jaxtrain.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "notebooks" / "quickstart.ipynb"
SMALL = "STEPS, LAYERS, BATCH_SIZE, RUN = 3, 1, 2, 'run'"


def tagged(notebook, tag):
    [cell] = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]
    return cell


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The quickstart with few steps of a small model, run in an empty folder; and that folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    tagged(notebook, "parameters").source = SMALL
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nprint('gin' in sys.modules)"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, str(folder / ".jupyter"))
        patch.delenv("XLA_FLAGS", raising=False)  # one device
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook, folder


def test_quickstart_is_the_quickstart_of_the_command_line():
    configuration = tagged(nbformat.read(QUICKSTART, as_version=4), "configuration").source
    names = {}
    exec(tagged(nbformat.read(QUICKSTART, as_version=4), "parameters").source, names)
    exec(configuration, names)
    assert names["config"] == load(ROOT / "configs" / "quickstart.gin").config


def test_quickstart_is_kept_without_outputs():
    for cell in nbformat.read(QUICKSTART, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_quickstart_trains_draws_and_writes(executed):
    notebook, folder = executed
    assert [record["step"] for record in read_metrics(folder / "run" / "metrics.jsonl")] == [1, 2, 3]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    assert [base64.b64decode(picture)[:4] for picture in pictures] == [b"\x89PNG"]
    text = printed(tagged(notebook, "writing"))
    assert text.count("-" * 80) == 3
    assert text.startswith("def ") and "\nimport " in text and '\n"""Return ' in text


def test_quickstart_installs_nothing_where_jaxtrain_is_at_hand(executed):
    install = next(cell for cell in executed[0].cells if "%pip install" in cell.source)
    assert not install.outputs


def test_quickstart_needs_no_gin(executed):
    assert printed(executed[0].cells[-1]) == "False\n"
