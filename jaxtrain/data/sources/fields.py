"""The fields of a record that make a document: one text, or several joined by a template, and a weight."""

import functools
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from jaxtrain.data.sources.base import Document, Record
from jaxtrain.data.sources.reading import Unusable

if TYPE_CHECKING:
    from jaxtrain.data.templates import Template


def check(template: str | None, **field: str) -> None:
    """Raise ValueError where the text is that of a template and a field was named, too, or no template compiles."""
    if template is None:
        return
    [(key, name)] = field.items()
    if name != "text":
        raise ValueError(
            f"{key}={name!r} has no effect beside template={template!r}, which names its fields; leave it out"
        )
    try:
        names = compiled(template).variables
    except ValueError as e:
        raise ValueError(f"template={e}") from e
    if not names:
        raise ValueError(f"template={template!r} names no field; write a field as {{{{ title }}}}")


def columns(field: str, template: str | None, weight: str | None) -> list[str]:
    """Return the names of the fields that are read, without those that only parts of a template may need."""
    names = compiled(template).variables if template is not None else {field}
    return sorted(names | ({weight} if weight else set()))


def documents(
    records: Iterable[Record], *, template: str | None, weight: str | None, **field: str
) -> Iterator[Document]:
    """Yield the documents of records, without those whose text is null. `field` is the key that names the field."""
    for record in records:
        found = document(record, template=template, weight=weight, **field)
        if found is not None:
            yield found


def document(
    record: Record, *, template: str | None, weight: str | None, names: Collection[str] = (), **field: str
) -> Document | None:
    """Return the document of a record, or None where its text is null. `field` is the key that names the field.

    `names` are all fields that there are, also those that were not read.
    """
    has = sorted({*record.fields, *names})
    if template is None:
        [(key, name)] = field.items()
        if not isinstance(record.fields.get(name, 0), str | None):
            raise Unusable(
                f"{key}={name!r} of {record.place} must be a text; the record has {has}. Name another {key}."
            )
        text = record.fields[name]
    else:
        try:
            text = compiled(template).render(record.fields)
        except ValueError as e:
            raise Unusable(f"{record.place}: {e}; the record has {has}") from e
    return None if text is None else Document(record.key, text, _weight(record, weight))


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> "Template":
    from jaxtrain.data.templates import Template  # imported here, because it takes time that other runs do not need

    return Template(template, where=repr(template), strict=True)


def _weight(record: Record, name: str | None) -> float:
    if name is None:
        return 1.0
    value = record.fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unusable(f"weight={name!r} of {record.place} must be a number, not {value!r}. Name another field.")
    return float(value)
