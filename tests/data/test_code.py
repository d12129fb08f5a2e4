"""The text of a class's code: other where an edit may change what the class does, and the same elsewhere."""

import itertools
import sys
from types import ModuleType

import pytest

from jaxtrain.data import ByteTokenizer, JsonLines
from jaxtrain.data.code import code_of
from jaxtrain.data.store import open_store

MODULE = '''
import functools
import re
from dataclasses import dataclass
from jaxtrain.data import Document, Source

WORDS = {"one", "two", "three"}
TABLE = {"a": "b"}
PATTERN = re.compile("x+")

def cleaned(text, lower=True):
    """Return the text."""
    return PATTERN.sub("", inner(text.lower() if lower else text))

@functools.cache
def inner(text):
    return text.translate(str.maketrans(TABLE))

def unused():
    return 1

@dataclass(frozen=True, kw_only=True)
class Mine(Source):
    """Documents."""
    suffix = "."

    def documents(self):
        for number in range(3):  # three
            yield Document(str(number), cleaned("A text" + self.suffix) * (str(number) not in WORDS))

    def fingerprint(self):
        return "always the same"
'''


def _class(text: str) -> type:
    module = ModuleType("mine")
    sys.modules["mine"] = module  # dataclasses look it up
    exec(compile(text, "mine.py", "exec"), vars(module))
    del sys.modules["mine"]
    return module.Mine


def _edited(old: str, new: str) -> type:
    assert MODULE.count(old) == 1
    return _class(MODULE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("range(3)", "range(4)"),
        ("lower=True", "lower=False"),
        ('compile("x+")', 'compile("x*")'),
        ('{"a": "b"}', '{"a": "c"}'),
        ('suffix = "."', 'suffix = "!"'),
        ('"one", ', ""),
        ("text.translate(str.maketrans(TABLE))", "text"),
    ],
    ids=["method", "default", "pattern", "table", "attribute", "constant", "helper of a helper"],
)
def test_an_edit_that_may_change_the_text_is_another_code(old, new):
    assert code_of(_edited(old, new)) != code_of(_class(MODULE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# three", "# all three"),
        ('"""Return the text."""', '"""Return it."""'),
        ("return 1", "return 2"),
        ("import re\n", "import re\n\n\n"),
    ],
    ids=["comment", "docstring", "unused", "lines"],
)
def test_an_edit_that_cannot_is_the_same(old, new):
    assert code_of(_edited(old, new)) == code_of(_class(MODULE))


def test_an_edited_class_is_tokenised_again_although_its_fingerprint_is_the_same():
    stores = [
        open_store(cls(), ByteTokenizer()) for cls in (_class(MODULE), _class(MODULE), _edited("A text", "B text"))
    ]
    assert [store.is_new for store in stores] == [True, False, True]
    assert ByteTokenizer().decode(stores[2].tokens[:6]) == "b tet."


def test_sets_have_one_order_whatever_the_seed_of_the_process():
    assert "{'one', 'three', 'two'}" in code_of(_class(MODULE))


def test_running_a_class_does_not_change_its_code():
    source = _class(MODULE)()
    before = code_of(type(source))
    for _ in range(100):  # the interpreter specialises what runs often
        list(source.documents())
    assert code_of.__wrapped__(type(source)) == before


def test_classes_of_one_name_and_other_modules_differ():
    codes = [code_of(cls) for cls in (JsonLines, ByteTokenizer, _class(MODULE))]
    assert all(one != other for one, other in itertools.combinations(codes, 2))
