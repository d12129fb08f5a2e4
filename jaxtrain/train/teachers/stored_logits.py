"""A teacher that was asked beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxtrain.models.teacher import Teacher
from jaxtrain.paths import Folder
from jaxtrain.shapes import ModelState
from jaxtrain.train.logits.folder import LogitsFolder, StoredRows


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLogits(Teacher):
    """The likeliest words and their logits that `jaxtrain logits` stored in the folder `path`; no teacher is there.

    The other fields are read from the folder where a configuration file leaves them out. So a run says which logits it
    was begun with, and refuses others. In Python, write `StoredLogits.of(path)`.
    """

    path: Folder
    top_k: int | None = None
    vocab_size: int | None = None
    fingerprint: str | None = None
    model: ClassVar[None] = None  # type: ignore[misc]
    paper: ClassVar[str] = "common practice"

    @classmethod
    def of(cls, path: str) -> "StoredLogits":
        """Return the teacher that a folder has the logits of."""
        folder = LogitsFolder.read(Path(path))
        return cls(path=path, top_k=folder.top_k, vocab_size=folder.vocab_size, fingerprint=folder.fingerprint)

    @property
    def members(self) -> int:
        return 0

    @property
    def given(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        if self.top_k is None:
            raise ValueError(f"path={self.path!r}: its folder was not read; write StoredLogits.of({self.path!r})")
        dtypes = {"words": jnp.int32, "logits": jnp.float32}
        return {name: jax.ShapeDtypeStruct((self.top_k,), dtype) for name, dtype in dtypes.items()}

    def hints(self, stream: str, rows: int) -> StoredRows:
        folder = LogitsFolder.read(Path(self.path))
        if (folder.fingerprint, folder.top_k) != (self.fingerprint, self.top_k):
            raise ValueError(
                f"path={self.path!r}: these are other logits, with fingerprint={folder.fingerprint!r} and "
                f"top_k={folder.top_k}, than those of the configuration, {self.fingerprint!r} and {self.top_k}; put "
                "those back, or begin another run with these"
            )
        return folder.rows(stream, rows)

    def arrays(self, mesh: Mesh) -> ModelState:
        """Return no arrays: there is no model."""
        return ModelState({})
