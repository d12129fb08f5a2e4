"""A data set of Hugging Face `datasets` on this machine. The library is an extra: `datasets`."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from jaxtrain.data.sources import fields, files
from jaxtrain.data.sources.base import Document, Record, Records
from jaxtrain.data.sources.reading import Unusable, reading
from jaxtrain.paths import Glob


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceFolder(Records):
    """Every row of a split of the data set in the folder `path`; null texts are skipped. A key is split:row, from 0.

    The folder is one that `save_to_disk` wrote, or has files that `load_dataset` reads. Text, template and weight are
    those of Parquet.
    """

    path: Glob
    split: str = "train"
    column: str = "text"
    template: str | None = None
    weight: str | None = None
    paper: ClassVar[str] = "arXiv:2109.02846"

    def __post_init__(self):
        fields.check(self.template, column=self.column)

    def check(self) -> None:
        if not Path(self.path).is_dir():
            raise ValueError(f"path={self.path!r} is no folder. Name one, or use HuggingFaceHub(name=...).")

    def documents(self) -> Iterator[Document]:
        records = self._records(fields.columns(self.column, self.template, self.weight))
        return fields.documents(records, template=self.template, weight=self.weight, column=self.column)

    def records(self) -> Iterator[Record]:
        return self._records(None)

    def fingerprint(self) -> str:
        self.check()
        own = f"{self.split!r} {self.column!r} {self.template!r} {self.weight!r}"
        return f"{own}\n{files.fingerprint(os.path.join(self.path, '**'))}"

    def _records(self, columns: list[str] | None) -> Iterator[Record]:
        self.check()
        with reading(self.path, what="a data set", unit="row") as place:
            rows = selected(self._opened(), columns)
            for number, row in place.each(rows, first=0):
                yield Record(f"{self.split}:{number}", str(place), row)

    def _opened(self) -> Iterable[dict[str, Any]]:
        datasets = library(f"path={self.path!r}")
        saved = any((Path(self.path) / name).exists() for name in ("state.json", "dataset_dict.json"))
        if not saved:  # streamed, as the library would otherwise copy all of it to its own cache
            return datasets.load_dataset(self.path, split=self.split, streaming=True)
        found = datasets.load_from_disk(self.path)
        if isinstance(found, datasets.DatasetDict):
            if self.split not in found:
                raise Unusable(f"split={self.split!r} of {self.path}: it has {sorted(found)}. Name one of these.")
            return found[self.split]
        of_folder = "train" if found.split is None else str(found.split)
        if self.split != of_folder:
            raise Unusable(f"split={self.split!r} of {self.path}: it has no splits but {of_folder!r}. Name that one.")
        return found


def library(key: str):
    """Return the module `datasets`, which takes seconds to import.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import datasets
    except ImportError as e:
        raise Unusable(f"{key}: the library datasets is not installed; pip install 'jaxtrain[datasets]'") from e
    datasets.disable_progress_bars()
    return datasets


def selected(dataset, columns: list[str] | None):
    """Return a data set with those of its columns that are wanted, or with all."""
    if columns is None or dataset.column_names is None:
        return dataset
    return dataset.select_columns([name for name in columns if name in dataset.column_names])
