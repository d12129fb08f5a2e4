"""Folders named on the command line that do not exist."""

from pathlib import Path

from jaxtrain.cli.config_names import nearest


def check_exists(folder: Path) -> None:
    """Raise ValueError where a folder does not exist, with the name most like it beside it."""
    if not folder.exists():
        raise ValueError(f"{folder} does not exist{nearest(folder.name, folders_beside(folder))}")


def folders_beside(path: Path) -> list[str]:
    return [beside.name for beside in path.parent.glob("[!.]*") if beside.is_dir()]
