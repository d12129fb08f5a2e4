"""A path to a folder that no library reads as anything but a path.

Orbax reads the characters [, * and ? of a path as a pattern: a save into `lr[3e-4]` then lacks a file without which it
cannot be restored. TensorStore reads a backslash as a slash, and fails on bytes that are not UTF-8. etils reads /gs/...
as a bucket. Their next versions may read other characters in such a way, so a path that has any but plain characters
is replaced by a temporary link.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|$))[\w/.,+=@-]*", re.ASCII)


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yield an absolute path to a folder that exists: its own if that is plain, else that of a temporary link.

    The link is removed when the `with` ends. It is not kept for long because systems clean their temporary folders.

    Raises:
        ValueError: a link is needed, and the path of the folder for temporary files is not plain either.
    """
    folder = folder.absolute()
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxtrain-", ignore_cleanup_errors=True) as temporary:
        link = Path(temporary, "link").absolute()
        if not _is_plain(link):
            raise ValueError(
                f"{folder} is reached through a link in {temporary}, whose path has other characters than letters, "
                f"digits and /.,_+=@- as well: set TMPDIR to a folder without"
            )
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_plain(path: Path) -> bool:
    return _PLAIN.fullmatch(str(path)) is not None
