"""A folder under a name that no library reads as anything but a name.

Orbax takes the characters [, * and ? of a path for a pattern (a save into `lr[3e-4]` then lacks the file without which
it cannot be restored), TensorStore a backslash for a slash and bytes that are not UTF-8 for an error, etils /gs/... for
a bucket. What their next versions take for something else is not known, so all but plain characters go through a link.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PLAIN = re.compile(r"(?!/(gs|s3|az|hf)(/|$))[\w/.,+=@-]*", re.ASCII)


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Give an absolute path to a folder that exists: its own if that is plain, or else that of a temporary link.

    The link is gone when the `with` ends; it is not kept for long because systems clean their temporary folders.

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
