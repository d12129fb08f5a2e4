"""What the configurations of the repository begin with: runs, as far as configurations can tell, and weights."""

import runpy
from pathlib import Path

from tiny import random_params

from jaxtrain.cli.config_file import load
from jaxtrain.record.files import RunFiles
from jaxtrain.surgery.huggingface import export_folder
from jaxtrain.train.folder import RunFolder

ROOT = Path(__file__).parents[1]
ADD_CHAT_TOKENIZER = runpy.run_path(str(ROOT / "scripts/add_chat_tokenizer.py"))["add_chat_tokenizer"]


def make_runs(folder: Path) -> None:
    """Make runs/quickstart, and runs/chat_base with the files of its tokenizer."""
    config = load(ROOT / "configs/quickstart.gin").config
    for name in ("quickstart", "chat_base"):
        run = RunFolder(folder / "runs" / name)
        run.path.mkdir(parents=True)
        RunFiles.of(config).write(run)
    (run.path / "huggingface").mkdir()
    ADD_CHAT_TOKENIZER(run.path / "huggingface")


def make_published(folder: Path) -> None:
    """Make the Hugging Face folder of the quickstart's model, with random weights."""
    model = load(ROOT / "configs/quickstart.gin").config.model
    export_folder(model, random_params(model), folder)
