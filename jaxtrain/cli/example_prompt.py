"""A prompt to suggest at the end of training: words of the run's own text, which its model may continue well."""

import re
from collections.abc import Iterator

from jaxtrain.config import TrainConfig
from jaxtrain.data.split import Split, documents_of
from jaxtrain.data.store import open_store

DOCUMENTS, TOKENS = 20, 5000  # most documents searched, and most tokens of each
OPENING = 30  # characters of a text from which the first words are taken


def example_prompt(config: TrainConfig) -> str:
    """Return the prompt that a hook continues if the run's text contains it, or else the text's first words.

    The text is the beginning of the validation split if a hook evaluates on it, or else of the training split.
    """
    texts = list(_texts(config))
    for hook in config.hooks:
        if hook.continued and any(hook.continued in text for text in texts):
            return hook.continued
    words = re.search(r"[^\W\d_]\S*(?: \S+){0,2}", texts[0][:OPENING])  # begins with a letter, not with `"""` or `---`
    return words[0] if words else "The"


def _texts(config: TrainConfig) -> Iterator[str]:
    data = config.phases[-1].data or config.data
    evaluated = data.validation_fraction and any(hook.validation_batches for hook in config.hooks)
    split: Split = "validation" if evaluated else "train"
    source, fraction = data.sources[0], data.validation_fraction
    store = open_store(source, data.tokenizer)
    documents = documents_of(store, split=split, validation_fraction=fraction, divisible=source.divisible)
    for start, length in zip(documents.starts[:DOCUMENTS], documents.lengths, strict=False):
        text = data.tokenizer.decode(store.tokens[start : start + min(length, TOKENS)])
        # A document cut between the splits may begin inside a word: leave that word out.
        yield text if start in store.starts else text.partition(" ")[2]
