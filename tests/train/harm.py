"""Ways to damage a checkpoint folder. Each returns the file that is found to be wrong, and how."""

import json
import shutil
from pathlib import Path


def _data_file(folder: Path) -> Path:
    return max((path for path in folder.glob("params/**/d/*")), key=lambda path: path.stat().st_size)


def flip_a_bit(folder: Path) -> tuple:
    path = _data_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.relative_to(folder), "damaged"


def truncate(folder: Path) -> tuple:
    path = _data_file(folder)
    path.write_bytes(path.read_bytes()[:-1])
    return path.relative_to(folder), "damaged"


def delete(folder: Path) -> tuple:
    path = _data_file(folder)
    path.unlink()
    return path.relative_to(folder), "missing"


def break_manifest(folder: Path) -> tuple:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-9])
    return "manifest.json", "damaged"


def no_manifest(folder: Path) -> tuple:
    (folder / "manifest.json").unlink()
    return "manifest.json", "missing"


def manifest_of_nothing(folder: Path) -> tuple:
    (folder / "manifest.json").write_text("{}")
    return "manifest.json", "damaged"


def manifest_of_another_shape(folder: Path) -> tuple:
    (folder / "manifest.json").write_text(json.dumps({"checkpoint": folder.name, "files": {"params/_METADATA": [1]}}))
    return "manifest.json", "damaged"


def manifest_too_deep(folder: Path) -> tuple:
    (folder / "manifest.json").write_text("[" * 100_000)
    return "manifest.json", "damaged"


def manifest_that_lists_less(folder: Path) -> tuple:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["params/manifest.ocdbt"]
    path.write_text(json.dumps(manifest))
    return "params/manifest.ocdbt", "manifest.json"


def another_checkpoint(folder: Path) -> tuple:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("1"), folder)
    return "manifest.json", "checkpoint 1"


HARM = (
    flip_a_bit,
    truncate,
    delete,
    break_manifest,
    no_manifest,
    manifest_of_nothing,
    manifest_of_another_shape,
    manifest_too_deep,
    manifest_that_lists_less,
    another_checkpoint,
)
