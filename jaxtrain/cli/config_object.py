"""Values as `--set` and `schedule show` write them: literals, and objects with their parameters.

    1e-3    gs://bucket/a    @Lion()    @jaxtrain.optim.lion.Lion(b1=0.95)    (@Phase(steps=1), @Phase(steps=2))

A text that is a Python literal is that literal; another text is a string. `@Name(key=value)` is an object. A short name
is looked up in the modules beside the classes that the key has now or is annotated with; a full name may be in any
module. Where a key takes objects and no text, the `@` and empty brackets may be left out: `TwoBP(schedule=ZBH1)`.
"""

import ast
import io
import re
import tokenize
from typing import NamedTuple

from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_literal import check_text, expression, parsing
from jaxtrain.cli.config_target import check_fits, find_target
from jaxtrain.cli.config_tree import Leaf, Slot, Tree, field_name, new_node, sequence, tree_of
from jaxtrain.cli.config_types import classes_in, fits
from jaxtrain.record.walk import label


class Reader(NamedTuple):
    """Reads values. `imports` are the modules they may import, `origin` is what the tree records as their origin."""

    imports: Imports
    origin: str

    def read(self, text: str, slot: Slot, near: list[type]) -> Tree:
        """Return the tree of a value. Short names are looked up in the modules beside those of the classes `near`.

        Raises:
            ValueError: the value cannot be read, or the result of a call in it is not known to fit its key.
        """
        if re.match(r"[\s(\[]*@", text):
            return self._tree(_unmarked(text), slot, near)
        try:
            syntax = expression(text)
        except SyntaxError:
            if text[:1] in ("'", '"'):
                raise ValueError("begins with a quote and is no string; see to its quotes and backslashes") from None
            return Leaf(value=text, origin=self.origin)
        if _is_object(syntax, slot):
            return self._tree(syntax, slot, near)
        try:
            return tree_of(ast.literal_eval(syntax), self.origin)
        except (ValueError, TypeError):
            return Leaf(value=text, origin=self.origin)  # a string, which the type check refuses for another type

    def _tree(self, syntax: ast.expr, slot: Slot, near: list[type]) -> Tree:
        match syntax:
            case ast.Call(func=name, args=[], keywords=keywords):
                return self._object_tree(ast.unparse(name), keywords, slot, near)
            case ast.Name() | ast.Attribute() if _is_object(syntax, slot):
                return self._object_tree(ast.unparse(syntax), [], slot, near)
            case ast.Tuple() | ast.List():
                items = [self._tree(item, slot.item(i), near) for i, item in enumerate(syntax.elts)]
                return sequence(items, self.origin)
            case ast.Name(id=word):
                return Leaf(value=word, origin=self.origin)
        try:
            return tree_of(ast.literal_eval(syntax), self.origin)
        except (ValueError, TypeError):
            raise ValueError(f"{ast.unparse(syntax)} is neither a literal nor @Name(key=value, ...)") from None

    def _object_tree(self, name: str, keywords: list[ast.keyword], slot: Slot, near: list[type]) -> Tree:
        target = find_target(name, slot, near, self.imports)
        check_fits(target, slot)
        if not isinstance(target, type):
            if keywords:
                raise ValueError(f"{label(target)} is a function; it takes no keys")
            return tree_of(target(), self.origin)
        given: dict[str, Tree] = {}
        for keyword in keywords:
            if keyword.arg is None:
                raise ValueError(f"**{ast.unparse(keyword.value)} cannot be read; write @Name(key=value, ...)")
            field = field_name(target, keyword.arg)
            if field in given:
                raise ValueError(f"{label(target)} has two values for {field!r}; remove one of them")
            below = slot.field(target, field)
            given[field] = self._tree(keyword.value, below, classes_in(below.hint))
        return new_node(target, given, self.origin)


def _is_object(syntax: ast.expr, slot: Slot) -> bool:
    """Tell whether a text without `@` is an object: it looks like one, and its key takes objects and no text."""
    named = isinstance(syntax, ast.Call | ast.Name | ast.Attribute)
    return named and bool(classes_in(slot.hint)) and not fits("", slot.hint)


def _unmarked(text: str) -> ast.expr:
    """Return the syntax tree of `@Name(key=value)` without the `@`."""
    check_text(text)
    try:
        with parsing():
            marked = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string != "@"]
        return expression(tokenize.untokenize(marked))
    except (SyntaxError, tokenize.TokenError):
        raise ValueError("cannot be read; write @Name(key=value, ...)") from None
