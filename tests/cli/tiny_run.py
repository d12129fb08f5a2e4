"""The quickstart made tiny: its own file with a few keys changed, on a little text. Tests of the commands share it."""

import hashlib
from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.gin")
STEPS, EVALUATED_STEPS = 3, (2, 3)


class TinyRun(NamedTuple):
    """A finished run: its folder, the command line that made it but for `--run`, and what that printed."""

    folder: Path
    command: list[str]
    printed: str


def command(text: Path) -> list[str]:
    """Return the command line, to which `--run FOLDER` is added."""
    changes = {
        "data.source": f"@TextFiles(glob='{text}/*.txt')",
        "model.d_model": 32,
        "model.repeats": 1,
        "model.max_length": 256,
        "model.pattern[0].mixer.head_dim": 8,
        "model.pattern[0].mlp.hidden": 64,
        "optimizer.learning_rate.warmup_steps": 1,
        "phases[0].steps": STEPS,
        "phases[0].batch_size": 8,
        "phases[0].sequence_length": 32,
        "hooks[0].every_steps": 2,
        "hooks[0].batches": 2,
        "hooks[1].tokens": 16,
        "hooks[2].every_steps": 2,
    }
    return ["train", QUICKSTART, *sets(changes)]


def sets(changes: dict[str, object]) -> list[str]:
    return [part for path, value in changes.items() for part in ("--set", f"{path}={value}")]


def write_text(folder: Path) -> Path:
    """Make a few documents, none like another."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(20):
        lines = (f"def f{i}(x): return {number} * x + {i * i}" for i in range(number, number + 12))
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


def content(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder, and the folders in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }
