"""The loss of a bigram model, which counts how often each token follows each other one: a baseline for a run.

Witten and Bell (1991), as an interpolation: p(b|a) = (c(ab) + t(a) p(b)) / (c(a) + t(a)), with c the counts of the
training split, t(a) the number of different tokens seen after a, and p(b) the add-one unigram. Its loss is lower than
with add-one pair counts, so it is the stricter baseline. The sources of a mixture are counted without their weights. So
are tokens, but a token without loss is not counted as a follower.
"""

import numpy as np

from jaxtrain.data.config import DataConfig
from jaxtrain.data.loader import loader
from jaxtrain.data.rows import Rows, open_rows

LARGEST_VOCABULARY = 1024


def bigram_loss(
    config: DataConfig, *, batch_size: int, sequence_length: int, seed: int, num_batches: int | None = None
) -> float:
    """Return the mean cross-entropy in nats a token over the validation split, or its first `num_batches` batches.

    The arguments are those of the validation `loader`, and its batches and weights are used.
    """
    vocab_size = config.tokenizer.vocab_size
    if vocab_size > LARGEST_VOCABULARY:
        raise ValueError(f"{vocab_size=} is too large to count pairs: at most {LARGEST_VOCABULARY}. Compare on bytes.")
    train = open_rows(config, split="train", sequence_length=sequence_length, seed=seed)
    loss_table = -np.log(_smoothed(_pair_counts(train, vocab_size)))
    batches = loader(
        config, split="validation", batch_size=batch_size, sequence_length=sequence_length, seed=seed, num_epochs=1
    )
    loss = weight = 0.0
    for number, batch in enumerate(batches):
        if number == num_batches:
            break
        loss += float((loss_table[batch.tokens, batch.targets] * batch.weights).sum())
        weight += float(batch.weights.sum())
    if not weight:
        raise ValueError(f"{num_batches=} of the validation split hold no token with loss; take more, or None for all")
    return loss / weight


def _pair_counts(rows: Rows, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size * vocab_size, np.int64)
    for source in rows.sources:
        for tokens, weights in zip(source.document_tokens(), source.document_weights(), strict=True):
            pair = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
            asked = pair if weights is None else pair[weights[1:] > 0]
            counts += np.bincount(asked, minlength=len(counts))
    return counts.reshape(vocab_size, vocab_size)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    unigram = counts.sum(axis=0) + 1
    unigram = unigram / unigram.sum()
    followers = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)
    return (counts + followers * unigram) / (counts.sum(axis=1, keepdims=True) + followers)
