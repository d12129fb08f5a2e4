"""Where the answers lie in the text of a chat.

The chat is rendered up to each answer, as a model gets it that shall answer next, and up to and including the answer.
Both must be the beginning of the whole text. The difference, up to its stop token, is what a model learns to write. So
any template works, whatever it puts around messages.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtrain.data.chat.messages import MARK, Chat, Message
from jaxtrain.data.chat.template import ChatTemplate


class Span(NamedTuple):
    """The characters of an answer with its stop token, and the weight of the loss on their tokens."""

    start: int
    end: int
    weight: float


class Rendered(NamedTuple):
    """The text of a chat, the answers in it, and the `cuts`: places inside of words that only spell a special token."""

    text: str
    spans: tuple[Span, ...]
    cuts: tuple[int, ...]


def rendered(chat: Chat, template: ChatTemplate, stop_token: str) -> Rendered:
    """Return the text of a chat and where its answers lie.

    Raises:
      ValueError: the template does not keep what it wrote when more messages follow, or an answer does not end.
    """
    chat = template.marked(chat)
    whole = template.render(chat.messages, tools=chat.tools)
    spans = [_span(chat, number, whole, template, stop_token) for number, weight in enumerate(chat.weights) if weight]
    return _without_marks(whole, spans)


def prompt(messages: Sequence[Message], template: ChatTemplate) -> Rendered:
    """Return the text of a chat up to where the next answer begins."""
    marked = template.marked(Chat(tuple(messages), ()))
    return _without_marks(template.render(marked.messages, answers_next=True), [])


def _span(chat: Chat, number: int, whole: str, template: ChatTemplate, stop_token: str) -> Span:
    asked = template.render(chat.messages[:number], tools=chat.tools, answers_next=True)
    if not whole.startswith(asked):
        raise ValueError(_broken(f"before messages[{number}]", asked, whole))
    end = whole.find(stop_token, len(asked)) + len(stop_token)
    if end < len(asked) + len(stop_token):
        raise ValueError(f"no {stop_token!r} ends messages[{number}]: the template must write it behind every answer")
    answered = template.render(chat.messages[: number + 1], tools=chat.tools)
    if answered[:end] != whole[:end]:
        raise ValueError(_broken(f"up to and including messages[{number}]", answered[:end], whole))
    return Span(len(asked), end, chat.weights[number])


def _broken(what: str, part: str, whole: str) -> str:
    first = next((i for i, pair in enumerate(zip(part, whole, strict=False)) if pair[0] != pair[1]), len(whole))
    then, now = (text[max(first - 20, 0) : first + 20].replace(MARK, "") for text in (part, whole))
    return (
        f"the template writes what stands {what} otherwise once more messages follow: first {then!r}, then {now!r}. "
        "What it wrote must stay, or a model learns another text than it gets; end the chat with that answer, or mend "
        "the template"
    )


def _without_marks(text: str, spans: Sequence[Span]) -> Rendered:
    def place(marked: int) -> int:
        return marked - text.count(MARK, 0, marked)

    cuts = (place(number) for number, letter in enumerate(text) if letter == MARK)
    moved = (span._replace(start=place(span.start), end=place(span.end)) for span in spans)
    return Rendered(text.replace(MARK, ""), tuple(moved), tuple(cuts))
