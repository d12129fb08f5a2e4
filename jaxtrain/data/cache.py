"""Where what can be made again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$JAXTRAIN_CACHE` or ~/.cache/jaxtrain."""
    return Path(os.environ.get("JAXTRAIN_CACHE") or Path.home() / ".cache" / "jaxtrain")
