"""`jaxtrain generate RUN --chat`: each line of standard input is a message, and its answer follows as it is made."""

from collections.abc import Iterable, Iterator
from typing import TextIO

import jax

from jaxtrain.cli.chat_template import last_data, stop_tokens
from jaxtrain.cli.finished import FinishedRun
from jaxtrain.data import Tokenizer
from jaxtrain.data.chat.messages import ASSISTANT, Message
from jaxtrain.data.chat.template import ChatTemplate
from jaxtrain.data.chat.tokens import encode_prompt
from jaxtrain.data.chat.turns import prompt
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, stream

UNFINISHED = "\ufffd"  # what a tokenizer decodes the first bytes of a letter to


def talk(
    finished: FinishedRun,
    template: ChatTemplate,
    lines: Iterable[str],
    *,
    system: str | None,
    tokens: int,
    sampling: Sampling,
    seed: int,
) -> None:
    """Answer every line that is not blank, by at most `tokens` tokens, until the lines end.

    Raises:
      ValueError: the chat has no room for an answer in the model's context.
    """
    tokenizer = last_data(finished.config).tokenizer
    stops = stop_tokens(template, tokenizer)
    graph, room = abstract_model(finished.config.model).graph, finished.config.model.max_length
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, line in enumerate(filter(str.strip, lines)):
        messages.append({"role": "user", "content": line.rstrip("\r\n")})
        asked = encode_prompt(prompt(messages, template), tokenizer)
        if len(asked) >= room:
            raise ValueError(
                f"the chat has {len(asked)} tokens and the model a context of {room}: begin a new one, or write less"
            )
        drawn = stream(
            graph,
            finished.model,
            asked,
            tokens=min(tokens, room - len(asked)),
            sampling=sampling,
            key=jax.random.fold_in(jax.random.key(seed), number),
            stop_tokens=stops,
        )
        answer = ""
        for text in texts(drawn, tokenizer):
            print(text, end="", flush=True)
            answer += text
        print(flush=True)
        messages.append({"role": ASSISTANT, "content": answer})


def texts(ids: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of tokens as they come, each letter when it is whole."""
    taken: list[int] = []
    written = ""
    for id in ids:
        taken.append(id)
        text = tokenizer.decode(taken)
        if text.startswith(written) and not text.endswith(UNFINISHED):
            yield text[len(written) :]
            written = text
    yield tokenizer.decode(taken)[len(written) :]


def lines_of(stream: TextIO) -> Iterator[str]:
    """Yield the lines of a stream as they come, each behind a prompt where somebody types them."""
    while True:
        if stream.isatty():
            print("> ", end="", flush=True)
        line = stream.readline()
        if not line:
            return
        yield line
