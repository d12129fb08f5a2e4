"""One domain of a source: the documents of one group that `jaxtrain domains` found (data/domains)."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from jaxtrain.data.domains.file import DomainsFile
from jaxtrain.data.sources.base import Document, Source, Tokenised
from jaxtrain.data.store_files import key_hash
from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.paths import FilePath


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Domain(Source):
    """The documents of a source that are of domain `index`, by the file `path` that `jaxtrain domains` wrote."""

    source: Source
    path: FilePath
    index: int
    paper: ClassVar[str] = "arXiv:2303.14177"

    @property
    def divisible(self) -> bool:  # type: ignore[override]  # that of the source
        return self.source.divisible

    def check(self) -> None:
        self.source.check()
        self._domains()

    def documents(self) -> Iterator[Document]:
        """Yield the documents of the domain. Empty ones are of none."""
        full = (document for document in self.source.documents() if any(part.text for part in document.parts))
        return self._chosen(full, lambda document: document)

    def tokenised(self, tokenizer: Tokenizer) -> Iterator[Tokenised]:
        return self._chosen(self.source.tokenised(tokenizer), lambda item: item.document)

    def fingerprint(self) -> str:
        file = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        return f"domain {self.index} {file}\n{type(self.source).__qualname__} {self.source.fingerprint()}"

    def _domains(self) -> DomainsFile:
        domains = DomainsFile.read(Path(self.path))
        if not 0 <= self.index < domains.number:
            raise ValueError(f"index={self.index}: {self.path} has {domains.number} domains, from 0 on")
        return domains

    def _chosen[Item](self, items: Iterator[Item], document: Callable[[Item], Document]) -> Iterator[Item]:
        domains, number = self._domains(), -1
        for number, item in enumerate(items):
            key = document(item).key
            if number >= len(domains.keys) or domains.keys[number] != key_hash(key.encode(errors="replace")):
                raise self._other_text(f"document {key!r}")
            if domains.labels[number] == self.index:
                yield item
        if number + 1 < len(domains.keys):
            raise self._other_text(f"the end after {number + 1} documents")

    def _other_text(self, where: str) -> ValueError:
        return ValueError(
            f"path={self.path!r}: its domains are of another text, found at {where}; "
            "write them anew with jaxtrain domains"
        )
