"""Generation until a stop text: what tasks ask for that read a model's answer.

A text is decoded after every few tokens. Prompts whose text has a stop in it leave the batch; the others go on from
what was written.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxtrain.data.tokenizers.base import Tokenizer
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.shapes import ModelState

PIECE = 64  # tokens between two looks at the text


def generate_until(
    graph: nnx.GraphDef,
    model: ModelState,
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Tokenizer,
    stops: Sequence[str],
    tokens: int,
    max_length: int,
    sampling: Sampling,
    batch_size: int,
    mesh: Mesh,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[str]:
    """Return the text after each prompt: up to `tokens` tokens, the end of the document, or the first of the stops.

    A prompt that is too long for the model's context loses its beginning. `track` goes over the first prompts of the
    batches, for a progress bar.

    Raises:
        ValueError: `tokens` leaves no room for a prompt, or the model cannot generate.
    """
    if not 1 <= tokens < max_length:
        raise ValueError(f"{tokens} tokens to generate: from 1 to {max_length - 1}, as the context is {max_length}")
    stops = [stop for stop in stops if stop]
    kept = [list(prompt)[-(max_length - tokens) :] for prompt in prompts]
    by_length = sorted(range(len(kept)), key=lambda number: -len(kept[number]))
    texts: dict[int, str] = {}
    for first in track(range(0, len(kept), batch_size)):
        going = {number: list[int]() for number in by_length[first : first + batch_size]}
        written = 0
        while going:
            count = min(PIECE, tokens - written)
            rows = [kept[number] + new for number, new in going.items()]
            rows += [rows[0]] * (batch_size - len(rows))  # always as many, so that few shapes are compiled
            key = jax.random.fold_in(jax.random.key(first), written)
            with jax.set_mesh(mesh):
                drawn = generate(
                    graph,
                    model,
                    rows,
                    tokens=count,
                    sampling=sampling,
                    key=key,
                    stop_token=tokenizer.end_of_document_id,
                )
            written += count
            for (number, new), more in zip(list(going.items()), drawn, strict=False):  # the last rows fill up the batch
                new += more
                texts[number] = tokenizer.decode(new)
                ended = len(more) < count or written == tokens
                if ended or any(stop in texts[number] for stop in stops):
                    del going[number]
    return [before_stops(texts[number], stops) for number in range(len(prompts))]


def before_stops(text: str, stops: Iterable[str]) -> str:
    """Return the text before the first of the stops in it."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)
