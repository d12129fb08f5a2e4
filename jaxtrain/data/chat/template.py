"""The template of chats: a Jinja file, or the JSON file of a tokenizer that has one."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtrain.data.chat.messages import ASSISTANT, MARK, Chat, Message, marked, spellings
from jaxtrain.data.tokenizers import Tokenizer

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ANSWER = "\ufdd1"  # a noncharacter of Unicode: no template writes it


class ChatTemplate:
    """A template, and the special tokens that it writes.

    `path` is a Jinja file, or a tokenizer_config.json with a `chat_template`, which also says what `bos_token` and the
    like are. For a Jinja file these are what the tokenizer puts before a document and what ends one. `text` is the
    template, and `told` its special tokens by their names.
    """

    def __init__(
        self, path: str, tokenizer: Tokenizer, *, bos_token: str | None = None, date: datetime.date | None = None
    ):
        from jaxtrain.data.templates import Template  # imported here, because it takes time that other runs do not need

        self.text, told = _read(Path(path))
        self._special = tokenizer.special_tokens
        if not self._special:
            raise ValueError(
                f"data.tokenizer={tokenizer} has no special tokens to end answers; use a HuggingFaceTokenizer"
            )
        self._spellings = spellings(self._special)
        self._template = Template(self.text, where=path, date=date)
        self._path = path
        names = {id: token for token, id in self._special.items()}
        if told is None:
            of_tokenizer = {"eos_token": names.get(tokenizer.end_of_document_id)}
            of_tokenizer["bos_token"] = names.get(next(iter(tokenizer.beginning), -1))
            told = {name: token for name, token in of_tokenizer.items() if token}
        if bos_token is not None:
            told["bos_token"] = bos_token
        self.told = told
        self._check_special()

    def marked(self, chat: Chat) -> Chat:
        """Return a chat with MARK in every special token that its messages spell."""
        messages, tools = (marked(value, self._spellings) for value in (chat.messages, chat.tools))
        return chat._replace(messages=messages, tools=tools)

    def render(self, messages: Sequence[Message], *, tools: Any = None, answers_next: bool = False) -> str:
        """Return the text of messages, and with `answers_next` also what the template puts before an answer."""
        values = {"tools": tools, "documents": None, "add_generation_prompt": answers_next}
        text = self._template.render(self.told | values | {"messages": list(messages)})
        if ascii(MARK)[1:-1] in text:
            raise ValueError(f"a message spells a special token, and {self._path} writes it as JSON in ASCII")
        return text

    @property
    def stop_token(self) -> str:
        """The special token that ends an answer: the first behind its text.

        Raises:
          ValueError: there is none.
        """
        asked = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": _ANSWER}]
        behind = self.render(asked).partition(_ANSWER)[2]
        tokens = sorted(self._special, key=len, reverse=True)
        found = re.search("|".join(map(re.escape, tokens)), behind) if tokens else None
        if found is None:
            raise ValueError(
                f"the template {self._path} writes {behind!r} behind an answer, which holds no special token of the "
                "tokenizer, so a model would not learn to stop. Let it write {{ eos_token }} there."
            )
        return found[0]

    def _check_special(self) -> None:
        for name in SPECIAL_NAMES:
            if name not in self._template.variables:
                continue
            token = self.told.get(name)
            if token is None:
                remedy = "set bos_token" if name == "bos_token" else "write the token itself into it"
                raise ValueError(
                    f"the template {self._path} writes {name}, which neither it nor data.tokenizer tells; {remedy}."
                )
            if token and token not in self._special:
                raise ValueError(
                    f"the template {self._path} writes {name} {token!r}, which is no special token of data.tokenizer. "
                    f"Name one of these: {sorted(self._special)[:20]}."
                )


def _read(path: Path) -> tuple[str, dict[str, str] | None]:
    """Return the text of a template, and the special tokens that its file tells, or None where it tells none."""
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as e:
        raise ValueError(f"template={str(path)!r} is not UTF-8 text ({e}). Name a Jinja file.") from e
    if path.suffix != ".json":
        return text, None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"template={str(path)!r} is not JSON ({e}). Name a Jinja file, or mend it.") from e
    written = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(written, list):  # several templates by name
        written = next((one.get("template") for one in written if one.get("name") == "default"), None)
    if not isinstance(written, str):
        raise ValueError(
            f"template={str(path)!r} has no `chat_template`. Name a tokenizer_config.json with one, or a Jinja file."
        )
    return written, {name: special_token(content, name) for name in SPECIAL_NAMES}


def special_token(settings: Mapping[str, Any], name: str) -> str:
    """Return the text of a special token in a tokenizer_config.json, or "" where it has none of the name."""
    token = settings.get(name)
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
