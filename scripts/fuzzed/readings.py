"""What a value written in a text says, read by other means than the stack's: the oracle of configurations."""

import ast
from decimal import Decimal, InvalidOperation

ABSENT = object()


def literal(text: str) -> ast.expr | object:
    """The literal that a text is, as syntax; ABSENT where it is none."""
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        ast.literal_eval(expression)
        return expression
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, UnicodeEncodeError):
        return ABSENT


def says(text: str, value: object) -> bool:
    """Whether a literal, such as `-1_0.5e3`, is the value: a float to half a unit in its last place, others exactly."""
    expression = literal(text)
    if isinstance(expression, ast.Constant | ast.UnaryOp) and type(value) is float:
        return _is_number(text, value)
    meant = ast.literal_eval(expression)
    return _plain(meant) == _plain(value) and type(_plain(meant)) is type(_plain(value))


def _is_number(text: str, value: float) -> bool:
    try:
        meant = Decimal(text.partition("#")[0].strip().replace("_", ""))
    except InvalidOperation:  # hexadecimal and such
        meant = Decimal(ast.literal_eval(text.strip()))
    if not Decimal(value).is_finite():
        return False
    return abs(Decimal(value) - meant) <= abs(meant) * Decimal(2) ** -53


def _plain(value: object) -> object:
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value
