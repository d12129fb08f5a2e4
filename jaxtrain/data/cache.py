"""The folder of caches: token stores, digests and compilations, which can all be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `$JAXTRAIN_CACHE` or ~/.cache/jaxtrain."""
    return Path(os.environ.get("JAXTRAIN_CACHE") or Path.home() / ".cache" / "jaxtrain")
