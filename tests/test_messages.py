"""A text that changed, a fact that is missing and a text of no test are noticed."""

import re
import shlex
from pathlib import Path

import messages
import pytest
from messages import check, holds, refused, stable

TEXT = "model.heads=4: must divide d_model=63; nearest 7"
HERE = "tests/test_messages.py::test_"


@pytest.fixture
def golden(tmp_path, monkeypatch):
    """A golden file, and a session, of one test alone."""
    monkeypatch.setattr(messages, "GOLDEN", tmp_path / "messages.txt")
    monkeypatch.setattr(messages, "session", messages.Session(temporary=tmp_path.parent))
    return messages.GOLDEN


def record(*texts):
    """Write what a session says in which `check` is called with the texts."""
    messages.session.writing = True
    for text in texts:
        check(text)
    messages.write()
    messages._read_once.cache_clear()
    messages.session = messages.Session(temporary=messages.session.temporary)


def test_a_recorded_text_passes_and_a_changed_one_fails_with_both_and_the_command(golden, request):
    record(TEXT)
    check(TEXT, "model.heads", 4, "d_model=63", 7)
    messages.session.last = ("", 0)
    with pytest.raises(AssertionError) as error:
        check(TEXT.replace("must", "shall"), "model.heads", 4)
    assert TEXT in str(error.value) and TEXT.replace("must", "shall") in str(error.value)
    assert f"--write-messages {shlex.quote(request.node.nodeid)}" in str(error.value)


def test_a_text_that_was_never_recorded_fails_with_the_command(golden, request):
    with pytest.raises(AssertionError, match="--write-messages " + re.escape(shlex.quote(request.node.nodeid))):
        check(TEXT)


def test_several_texts_of_one_test_are_told_apart(golden):
    record("first", "second\n\n  of three lines")
    check("first")
    with pytest.raises(AssertionError, match=r"it said\nsecond\n\n  of three lines\nand now says\nfirst"):
        check("first")


@pytest.mark.parametrize("fact", ["model.heads=4", "model.heads", 4, "d_model=63", 63, "; nearest", ": must divide"])
def test_a_fact_is_found(fact):
    check(TEXT, fact, recorded=False)


@pytest.mark.parametrize("fact", ["model.head", "el.heads=4", 6, "63.5", 3, "d_model=6", "model.heads=5", 64])
def test_a_fact_that_is_missing_or_part_of_another_word_fails_even_while_texts_are_written(golden, fact):
    messages.session.writing = True
    with pytest.raises(AssertionError, match=re.escape(repr(str(fact)))):
        check(TEXT, fact)


def test_a_number_is_not_found_in_a_longer_one():
    assert not holds("1,000 and 2.5", "1") and not holds("1,000 and 2.5", "000") and not holds("1,000 and 2.5", "2")
    assert holds("1,000 and 2.5, and 3.", "1,000") and holds("1,000 and 2.5, and 3.", "3")


@pytest.mark.parametrize(
    "text, fact", [("-4", "4"), ("x=-4", "4"), (".5", "5"), ("-.5", ".5"), ("0.5", ".5"), ("3-1", "-1"), ("v-3-1", "3")]
)
def test_a_sign_and_a_decimal_point_are_of_the_number(text, fact):
    assert not holds(text, fact) and not holds(f"({text})", fact)
    assert holds(text, text) and holds(f"x={text}, {fact}", fact)


@pytest.mark.parametrize(
    "text, fact", [("a-b", "b"), ("a-b", "a"), ("own.gin", ".gin"), ("--run", "run"), ("3,-1", "-1")]
)
def test_a_word_after_a_hyphen_or_a_dot_is_a_word(text, fact):
    assert holds(text, fact)


def test_a_number_is_not_found_in_the_name_of_the_temporary_folder_or_the_checkout(monkeypatch):
    monkeypatch.setattr(messages, "session", messages.Session(temporary=Path("/tmp/of/3")))
    monkeypatch.setattr(messages, "ROOT", Path("/home/5"))
    text = "/tmp/of/3/run0/a.txt and /home/5/b.txt differ"
    check(text, Path("/tmp/of/3/run0/a.txt"), "/home/5/b.txt", recorded=False)
    for fact in (3, 5, "/tmp/of/3/other0/a.txt", "of"):
        with pytest.raises(AssertionError, match="is missing"):
            check(text, fact, recorded=False)


def test_an_exception_of_another_kind_or_without_the_fact_is_not_the_one_that_is_expected(golden):
    record(TEXT)
    with refused(ValueError, "model.heads=4", 63) as error:
        raise ValueError(TEXT)
    assert str(error.value) == TEXT
    with pytest.raises(TypeError), refused(ValueError, "model.heads=4"):
        raise TypeError(TEXT)
    with pytest.raises(AssertionError, match="'5' is missing"), refused(ValueError, 5):
        raise ValueError(TEXT)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), refused(ValueError, 5):
        pass


def test_what_differs_between_runs_machines_and_libraries_is_named(tmp_path):
    error = OSError(28, "No space left on device", f"{tmp_path}/a.txt")
    assert stable(str(error)) == "<ENOSPC>: '<tmp>/a.txt'"
    assert stable(f"{messages.ROOT}/configs/a.gin:12 in process 77\0", {"<pid>": "77"}) == (
        "<checkout>/configs/a.gin:<line> in process <pid>\\x00"
    )
    assert stable("a.json (expected value at line 1): get it", {"<json>": r"\(.*\)"}) == "a.json <json>: get it"
    with pytest.raises(AssertionError, match="is not in"):
        stable("a.json is no JSON", {"<json>": r"\(.*\)"})


def test_writing_replaces_what_was_heard_removes_what_is_gone_and_keeps_the_rest(golden, request):
    other, here = f"{HERE}a_number_is_not_found_in_a_longer_one", request.node.nodeid
    gone, changed = f"{HERE}that_is_gone", f"{HERE}a_fact_is_found[nothing]"
    messages.session.texts = {(test, number): TEXT for test in (other, here, gone, changed) for number in (1, 2)}
    messages.write()
    messages.session.texts = {}
    record("new")
    assert messages.read(golden) == {(here, 1): "new"} | {(t, n): TEXT for t in (other, changed) for n in (1, 2)}
    messages.session.collected = {other, here}
    messages.write()
    assert messages.read(golden) == {(here, 1): "new"} | {(other, n): TEXT for n in (1, 2)}


def test_every_recorded_text_is_of_a_test_that_exists():
    recorded = messages.read(messages.GOLDEN)
    assert recorded and [test for test, _ in recorded if not messages.exists(test)] == []
