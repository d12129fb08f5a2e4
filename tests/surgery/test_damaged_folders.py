"""Model folders damaged at random: each is read as it stands or refused in one line that names the file."""

import re

import jax
import pytest
from damaged_folders import damaged_folder

from jaxtrain.surgery.huggingface import open_folder


def outcome(seed, parent):
    """Say how reading ended: "read", "refused", or what should not be."""
    folder, damage = damaged_folder(seed, parent)
    try:
        _, leaves = open_folder(folder)
        jax.tree.map(lambda leaf: leaf.read(), leaves)
    except (ValueError, OSError) as error:
        named = re.search(rf"{re.escape(str(folder))}(/\S+\.(json|safetensors)\b| (lacks|has) )", str(error))
        return "refused" if named and "\n" not in str(error) else f"{seed}: {damage}: {error}"
    except Exception as error:
        return f"{seed}: {damage}: {error!r}"
    return "read"


@pytest.mark.parametrize("start", range(0, 160, 20))
def test_is_read_or_refused_in_one_line_that_names_the_file(start, tmp_path):
    found = [outcome(seed, tmp_path / str(seed)) for seed in range(start, start + 20)]
    assert set(found) <= {"read", "refused"}
    assert found.count("refused") >= 8  # or else the damage was none
