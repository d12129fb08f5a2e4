"""Rows of chats: `messages`, or `prompt` and `completion`.

A message is an object with `role` and `content`; a template gets it whole, so it may have more, such as `tool_calls`.
Answers are the messages of the role `assistant`. An answer may have a `weight`, as in the files of fine-tuning
services: one of weight 0 is shown and not learned. `tools` of a row are given to the template.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

ASSISTANT = "assistant"
MARK = "\ufdd0"  # a noncharacter of Unicode: no text has it

type Message = Mapping[str, Any]


class Chat(NamedTuple):
    """The messages of a chat, and the weight of the loss on each."""

    messages: tuple[Message, ...]
    weights: tuple[float, ...]
    tools: Any = None


def chat_of(fields: Mapping[str, Any]) -> Chat:
    """Return the chat in a row.

    Raises:
      ValueError: the row is no chat, or has no answer to learn from.
    """
    if fields.get("messages") is not None:
        shown: list[Message] = []
        learned = _messages("messages", fields["messages"])
    elif fields.get("prompt") is not None and fields.get("completion") is not None:
        shown, learned = _prompt_and_completion(fields["prompt"], fields["completion"])
    else:
        raise ValueError(f"it has {sorted(fields)}; a chat has `messages`, or `prompt` and `completion`")
    weights = [0.0] * len(shown) + [_weight(message) for message in learned]
    if not any(weights):
        raise ValueError(f"it has no answer of {ASSISTANT!r} with a weight above 0; leave it out")
    without = [{key: value for key, value in message.items() if key != "weight"} for message in (*shown, *learned)]
    return Chat(tuple(without), tuple(weights), fields.get("tools"))


def _prompt_and_completion(prompt: Any, completion: Any) -> tuple[list[Message], list[Message]]:
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}], [{"role": ASSISTANT, "content": completion}]
    return _messages("prompt", prompt), _messages("completion", completion)


def _messages(key: str, value: Any) -> list[Message]:
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"its `{key}` must be a list of messages, each an object with `role` and `content`")
    # Columnar files give every message the keys of all; a null is a key that the message does not have.
    messages: list[Message] = [
        {k: v for k, v in message.items() if v is not None or k == "content"} for message in value
    ]
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise ValueError(f"{key}[{number}] has no `role` but {sorted(message)}; name who speaks, such as 'user'")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            raise ValueError(
                f"{key}[{number}] of {role!r} has no text as its `content`; give it, or leave the chat out"
            )
    return messages


def _weight(message: Message) -> float:
    given = message.get("weight", 1.0)
    if message["role"] != ASSISTANT:
        if "weight" in message and given:
            raise ValueError(f"a message of {message['role']!r} has weight={given}; only answers of {ASSISTANT!r} do")
        return 0.0
    if not isinstance(given, int | float) or not 0 <= given < math.inf:
        raise ValueError(f"a message of {ASSISTANT!r} has weight={given!r}; give a number of at least 0")
    return float(given)


def spellings(special_tokens: Iterable[str]) -> re.Pattern:
    """Return a pattern of the first letters of all special tokens that a text spells."""
    rests: dict[str, list[str]] = {}
    for token in special_tokens:
        rests.setdefault(token[0], []).append(re.escape(token[1:]))
    return re.compile("|".join(f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()) or "(?!)")


def marked(value: Any, spellings: re.Pattern) -> Any:
    """Return a value of JSON whose texts have MARK behind the first letter of every special token that they spell.

    So what somebody writes in a message cannot end the message, and without the marks it is as it was.
    """
    if isinstance(value, str):
        return spellings.sub(rf"\g<0>{MARK}", value.replace(MARK, "\ufffd"))
    if isinstance(value, Mapping):
        return {key: marked(item, spellings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [marked(item, spellings) for item in value]
    return value
