"""A data set of the Hugging Face Hub, streamed. The library is an extra: `datasets`.

The rows are kept in the cache as they come (`spool.py`), so a command that was stopped, or lost its network, goes on
where it was, and a token store can be made again without the network.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from typing import ClassVar

from jaxtrain.data.cache import cache_folder
from jaxtrain.data.sources import fields
from jaxtrain.data.sources.base import Document, Record, Records
from jaxtrain.data.sources.hugging_face_folder import library, selected
from jaxtrain.data.sources.reading import names_its_file, one_line
from jaxtrain.data.sources.spool import Stream, spooled


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceHub(Records):
    """Every row of a split of the data set `name`, or the first `rows`; null texts are skipped. A key is split:row.

    `revision` is the commit to read, 40 hex digits, because a branch may change. Text, template and weight are those of
    Parquet.
    """

    name: str
    revision: str
    subset: str | None = None
    split: str = "train"
    rows: int | None = None
    column: str = "text"
    template: str | None = None
    weight: str | None = None
    paper: ClassVar[str] = "arXiv:2109.02846"

    def __post_init__(self):
        fields.check(self.template, column=self.column)
        if not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"revision={self.revision!r} must be the 40 hex digits of a commit; the page of {self.name} lists them "
                "under Files, History"
            )
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows={self.rows} must be at least 1, or None for all")

    def documents(self) -> Iterator[Document]:
        records = self._records(fields.columns(self.column, self.template, self.weight))
        return fields.documents(records, template=self.template, weight=self.weight, column=self.column)

    def records(self) -> Iterator[Record]:
        return self._records(None)

    def expected_documents(self) -> int | None:
        return self.rows

    def fingerprint(self) -> str:
        return f"{self._set} {self.rows} {self.column!r} {self.template!r} {self.weight!r}"

    @property
    def _set(self) -> str:
        return f"{self.name} {self.subset!r} {self.split} {self.revision}"

    def _records(self, columns: list[str] | None) -> Iterator[Record]:
        def open_stream() -> Stream:
            return selected(
                library(f"name={self.name!r}").load_dataset(
                    self.name, self.subset, split=self.split, revision=self.revision, streaming=True
                ),
                columns,
            )

        name = hashlib.blake2b(json.dumps([self._set, columns]).encode(), digest_size=16).hexdigest()
        number = -1
        try:
            rows = spooled(cache_folder() / "streams" / name, open_stream, limit=self.rows)
            for number, row in enumerate(rows):
                yield Record(f"{self.split}:{number}", f"{self.name}:{number}", row)
        except Exception as e:  # the library and the network may raise any exception
            if names_its_file(e):
                raise
            raise ValueError(
                f"name={self.name!r} cannot be read after {number + 1} rows ({type(e).__name__}: {one_line(e)}). "
                "Check the name and the network; the same command goes on behind the rows that are kept."
            ) from e
