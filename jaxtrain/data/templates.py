"""Jinja templates, in the sandbox: what published chat templates use, and no access to Python.

The language is that of the chat templates of Hugging Face transformers: `trim_blocks` and `lstrip_blocks`, `break` and
`continue`, `raise_exception`, `strftime_now`, `tojson` without escapes for HTML, and `{% generation %}` blocks, whose
content is written as if the block were not there.
"""

import datetime
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


class Refused(Exception):
    """What a template says by `raise_exception`."""


class Template:
    """A compiled template. `variables` are the names that it reads from outside."""

    def __init__(self, text: str, *, where: str, date: datetime.date | None = None, strict: bool = False):
        """Compile a template. `where` names its file; `date` is the day that `strftime_now` tells, if any.

        With `strict` it refuses to write a name that is not given, or null; else both are nothing or `None`.

        Raises:
          ValueError: the text is no template.
        """
        self._where = where
        environment = _environment(date)
        if strict:
            environment.undefined, environment.finalize = jinja2.StrictUndefined, _not_null
            environment.keep_trailing_newline = True
        try:
            self._template = environment.from_string(text)
            self.variables = jinja2.meta.find_undeclared_variables(environment.parse(text))
        except (jinja2.TemplateError, RecursionError) as e:
            line = f":{e.lineno}" if isinstance(e, jinja2.TemplateSyntaxError) else ""
            raise ValueError(f"{where}{line} is no Jinja template ({e}). Mend it, or name another file.") from e

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text that the template makes of values.

        Raises:
          ValueError: the template refuses them, or cannot be run with them.
        """
        try:
            return self._template.render(values)
        except Refused as e:
            raise ValueError(f"the template {self._where} refuses it: {e}") from e
        except Exception as e:  # the expressions of a template may raise anything
            raise ValueError(f"the template {self._where} fails with it ({type(e).__name__}: {e})") from e


def _environment(date: datetime.date | None) -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json

    def strftime_now(form: str) -> str:
        if date is None:
            raise Refused(
                "it writes the day of today, so the text would differ tomorrow; give `date`, such as 2024-07-26"
            )
        return date.strftime(form)

    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": strftime_now}
    return environment


def _not_null(value: Any) -> Any:
    if value is None:
        raise Refused("it writes a null; write {{ name or '' }} where a name may be null")
    return value


def _raise_exception(message: str) -> NoReturn:
    raise Refused(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON. Jinja's own filter escapes `<`, `>`, `&` and quotes, which models do not write."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` and `{% endgeneration %}`, in which published templates mark the text of the assistant."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
