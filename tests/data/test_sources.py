"""Sources: what each one yields, from disk and from a URL, and what it says to input that is no text."""

import bz2
import gzip
import json
import lzma

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python import array_record_module
from messages import refused

from jaxtrain.data import ArrayRecord, Document, JsonLines, Parquet, Source, StandardLibrary, TextFiles

TEXTS = ["first", "zweite äöü", "third\nwith a line"]


def _write_text(path: str) -> Source:
    for number, text in enumerate(TEXTS):
        with fsspec.open(f"{path}/{number}.txt", "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
    return TextFiles(glob=f"{path}/*.txt")


def _write_json_lines(path: str) -> Source:
    with fsspec.open(f"{path}/a.jsonl", "w") as stream:
        stream.write("\n\n".join(json.dumps({"body": text, "other": 1}) for text in TEXTS))
    return JsonLines(glob=f"{path}/*.jsonl", field="body")


def _write_parquet(path: str) -> Source:
    table = pyarrow.table({"body": [TEXTS[0], None, *TEXTS[1:]], "other": [0, 1, 2, 3]})
    with fsspec.open(f"{path}/a.parquet", "wb") as stream:
        pyarrow.parquet.write_table(table, stream, row_group_size=2)
    return Parquet(glob=f"{path}/*.parquet", column="body")


def _write_array_record(path: str, scratch) -> Source:
    writer = array_record_module.ArrayRecordWriter(str(scratch / "local"), "group_size:1")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()
    with fsspec.open(f"{path}/a.array_record", "wb") as stream:
        stream.write((scratch / "local").read_bytes())
    return ArrayRecord(glob=f"{path}/*.array_record")


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path, memory) -> str:
    (tmp_path / "here").mkdir()
    return str(tmp_path / "here") if request.param == "local" else "memory://here"


@pytest.fixture(params=["text", "json_lines", "parquet", "array_record"])
def source(request, folder, tmp_path) -> Source:
    if request.param == "array_record":
        return _write_array_record(folder, tmp_path)
    return {"text": _write_text, "json_lines": _write_json_lines, "parquet": _write_parquet}[request.param](folder)


def test_every_source_yields_its_texts_in_order_from_disk_and_from_a_url(source):
    documents = list(source.documents())
    assert [document.text for document in documents] == TEXTS
    assert len({document.key for document in documents}) == len(TEXTS)
    assert list(source.documents()) == documents


def test_keys_do_not_depend_on_where_the_folder_is(tmp_path, memory):
    (tmp_path / "a").mkdir()
    here, there = _write_text(str(tmp_path / "a")), _write_text("memory://elsewhere/b")
    assert [d.key for d in here.documents()] == [d.key for d in there.documents()] == ["0.txt", "1.txt", "2.txt"]


def test_a_fingerprint_changes_with_a_file_and_with_the_sources_own_fields(tmp_path):
    source = _write_json_lines(str(tmp_path))
    before = source.fingerprint()
    assert source.fingerprint() == before
    assert JsonLines(glob=source.glob, field="other").fingerprint() != before
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(content.replace(b"first", b"FIRST"))
    assert source.fingerprint() != before
    (tmp_path / "a.jsonl").write_bytes(content)  # at another time
    assert source.fingerprint() == before


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("gz", gzip.compress),
        ("BZ2", bz2.compress),
        ("xz", lzma.compress),
        ("lzma", lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE)),
        ("zst", lambda content: pyarrow.Codec("zstd").compress(content, asbytes=True)),
    ],
)
def test_compressed_files_are_read_as_they_are(suffix, compress, folder):
    with fsspec.open(f"{folder}/a.jsonl.{suffix}", "wb") as stream:
        stream.write(compress(b'{"text": "packed"}\n' * 5_000))
    assert [d.text for d in JsonLines(glob=f"{folder}/*").documents()] == ["packed"] * 5_000
    assert [d.text for d in TextFiles(glob=f"{folder}/*").documents()] == ['{"text": "packed"}\n' * 5_000]


def test_half_a_surrogate_pair_in_json_becomes_text_that_can_be_encoded(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}')
    (document,) = JsonLines(glob=f"{tmp_path}/*.jsonl").documents()
    assert document.text.encode().decode() == "a\ufffdb \U0001f600"


def test_a_null_is_passed_over_and_a_missing_field_is_not(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "a"}\n{"other": "b"}\n')
    documents = JsonLines(glob=f"{tmp_path}/*.jsonl").documents()
    assert next(documents) == Document("a.jsonl:2", "a")
    with refused(ValueError, "field='text'", f"{tmp_path}/a.jsonl:3", ["other"]):
        next(documents)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xed\xa0\x80"}', "'utf-8' codec can't decode byte 0xed"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b'{"text": "a", "more": ' + b'{"a":' * 100_000, "maximum recursion depth"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"text": "a"', "Expecting ','"),
    ],
    ids=["raw surrogate", "nested lists", "nested objects", "long number", "half a line"],
)
def test_a_line_that_json_cannot_read_is_refused_with_its_number(line, reason, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n' + line)
    with refused(ValueError, f"{tmp_path}/a.jsonl:2", reason, varies={"<json>": r"\(.*\)"}) as error:
        list(JsonLines(glob=f"{tmp_path}/*.jsonl").documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()),
    ],
    ids=str,
)
def test_parquet_text_is_read_however_it_is_kept_and_nulls_are_passed_over(kind, tmp_path):
    column = pyarrow.array([None, *TEXTS, None, TEXTS[0]]).cast(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.nulls(3)}), tmp_path / "b.parquet")
    documents = list(Parquet(glob=f"{tmp_path}/*.parquet").documents())
    assert documents == [
        *(Document(f"a.parquet:{row}", text) for row, text in enumerate(TEXTS, start=1)),
        Document("a.parquet:5", "first"),
    ]


ROWS = [{"title": "One", "body": "first", "quality": 0.5}, {"title": None, "body": "second", "quality": 2}]
TEMPLATE = "{{ title or 'Untitled' }}\n{% if note is defined %}{{ note }}{% endif %}{{ body }}\n"


def _write_rows(kind: type[Source], folder) -> str:
    if kind is JsonLines:
        (folder / "rows").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows")
    return str(folder / "rows")


@pytest.mark.parametrize("kind", [JsonLines, Parquet])
def test_several_fields_are_joined_by_a_template_and_one_is_the_weight(kind, tmp_path):
    source = kind(glob=_write_rows(kind, tmp_path), template=TEMPLATE, weight="quality")
    assert [(d.text, d.weight) for d in source.documents()] == [("One\nfirst\n", 0.5), ("Untitled\nsecond\n", 2.0)]
    others = [kind(glob=source.glob, template=TEMPLATE), kind(glob=source.glob, weight="quality")]
    assert len({own.fingerprint() for own in (source, *others)}) == 3


@pytest.mark.parametrize("kind", [JsonLines, Parquet])
@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"template": "{{ title }}"}, ["null", "{{ name or '' }}"]),
        ({"template": "{{ tilte }}"}, ["'tilte'", ["body", "quality", "title"]]),
        ({"template": "{{ body }}", "weight": "title"}, ["weight='title'", "'One'"]),
    ],
    ids=["null", "misspelt", "weight"],
)
def test_what_a_template_cannot_write_is_refused_with_its_place(kind, options, facts, tmp_path):
    path = _write_rows(kind, tmp_path)
    with refused(ValueError, path, *facts) as error:
        list(kind(glob=path, **options).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"template": "{{ title"}, ["{{ title"]),
        ({"template": "title"}, ["template='title'", "{{ title }}"]),
        ({"template": "{{ title }}", "field": "body"}, ["field='body'", "template"]),
    ],
    ids=["half", "no field", "field too"],
)
def test_a_template_that_is_none_is_refused_before_any_file_is_read(options, facts):
    with refused(ValueError, *facts):
        JsonLines(glob="nowhere", **options)


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with refused(ValueError, "column='text'", f"{tmp_path}/a.parquet", ["text", "text"]):
        list(Parquet(glob=f"{tmp_path}/*.parquet").documents())


@pytest.mark.parametrize("kind", [TextFiles, JsonLines, Parquet, ArrayRecord])
@pytest.mark.parametrize("make", ["nothing", "folder"])
def test_a_glob_without_files_is_refused_by_name(kind, make, tmp_path):
    glob = str(tmp_path / "nowhere")
    if make == "folder":
        (tmp_path / "nowhere").mkdir()
    with refused(ValueError, f"{glob=}", "folder/**"):
        list(kind(glob=glob).documents())
    with pytest.raises(ValueError, match="matches no file"):
        kind(glob=glob).fingerprint()


def test_an_unknown_protocol_is_refused_with_the_remedy():
    with refused(ValueError, "glob='nope://x/*'", varies={"<fsspec>": r"(?<=listed: ).*?(?=\. )"}):
        TextFiles(glob="nope://x/*").fingerprint()


@pytest.mark.parametrize("content", [b"text\0text", b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n", "caf\xe9".encode("latin-1")])
def test_a_binary_file_is_refused_by_name_with_the_remedy(content, tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(content)
    with refused(ValueError, tmp_path / "b.txt", f"glob='{tmp_path}/*.txt'", varies={"<python>": r"\(.*?\)"}) as error:
        list(TextFiles(glob=f"{tmp_path}/*.txt").documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda g: JsonLines(glob=g), r"bad:1 cannot be read as JSON lines"),
        (lambda g: Parquet(glob=g), r"bad cannot be read as Parquet"),
        (lambda g: ArrayRecord(glob=g), r"bad cannot be read as ArrayRecord"),
    ],
)
def test_a_file_of_another_format_is_refused_by_name(source, message, tmp_path):
    (tmp_path / "bad").write_bytes(b"plain text, nothing else\n" * 3000)
    with pytest.raises(ValueError, match=message):
        list(source(f"{tmp_path}/bad").documents())


def test_a_missing_field_or_column_is_refused_naming_those_there_are(tmp_path):
    _write_json_lines(str(tmp_path))
    _write_parquet(str(tmp_path))
    with refused(ValueError, "field='text'", f"{tmp_path}/a.jsonl:1", ["body", "other"]):
        list(JsonLines(glob=f"{tmp_path}/*.jsonl").documents())
    with refused(ValueError, "column='text'", f"{tmp_path}/a.parquet", ["body", "other"]):
        list(Parquet(glob=f"{tmp_path}/*.parquet").documents())
    with refused(ValueError, "column='other'", "int64"):
        list(Parquet(glob=f"{tmp_path}/*.parquet", column="other").documents())


def test_the_standard_library_is_more_than_five_megabytes_of_sources_and_documentation_without_tests():
    documents = list(StandardLibrary().documents())
    keys = [document.key for document in documents]
    assert sum(len(document.text) for document in documents) > 5e6
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert {"json/decoder.py", "pydoc_data/topics.py"} <= set(keys)
    assert any(key.endswith(".txt") for key in keys)
    assert not any({"test", "tests", "site-packages", "__pycache__"} & set(key.split("/")) for key in keys)


def test_a_python_without_its_sources_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with refused(ValueError, "StandardLibrary()", tmp_path, "TextFiles"):
        StandardLibrary().fingerprint()
