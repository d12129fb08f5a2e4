"""A prompt to propose at the end of training, which the run's model has a chance to continue."""

import re
from collections.abc import Iterator

from jaxtrain.config import TrainConfig
from jaxtrain.data.split import documents_of
from jaxtrain.data.store import open_store
from jaxtrain.train.hooks import Sample

DOCUMENTS, TOKENS = 20, 5000  # that are looked at, and of each
OPENING = 30  # characters that the first words are taken from


def example_prompt(config: TrainConfig) -> str:
    """Return the prompt that samples continue if the text holds it, and else the text's first words.

    The text is the beginning of what the run is evaluated on.
    """
    texts = list(_texts(config))
    for hook in config.hooks:
        if isinstance(hook, Sample) and any(hook.prompt in text for text in texts):
            return hook.prompt
    words = re.search(r"[^\W\d_]\S*(?: \S+){0,2}", texts[0][:OPENING])  # from a letter on, not from `"""` or `---`
    return words[0] if words else "The"


def _texts(config: TrainConfig) -> Iterator[str]:
    data = config.phases[-1].data or config.data
    split = "validation" if any(hook.validation_batches for hook in config.hooks) else "train"
    store = open_store(data.sources[0], data.tokenizer)
    documents = documents_of(store, split=split, validation_fraction=data.validation_fraction)
    for start, length in zip(documents.starts[:DOCUMENTS], documents.lengths, strict=False):
        text = data.tokenizer.decode(store.tokens[start : start + min(length, TOKENS)])
        # A document that was cut may begin within a word.
        yield text if start in store.starts else text.partition(" ")[2]
