"""`jaxtrain tokenizer train`: a byte-level BPE from any source, as a `tokenizers` JSON file.

The pairs are of bytes (Sennrich et al. (2016), arXiv:1508.07909, over bytes and words as in GPT-2), so any text can be
encoded and is decoded exactly. The `tokenizers` library counts and merges; this file chooses its components.
"""

import argparse
import os
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxtrain.cli.config_file import load
from jaxtrain.data.sources import Source, TextFiles
from jaxtrain.data.tokenizers import HuggingFaceTokenizer

_SMALLEST_VOCABULARY = 257  # every byte, and the end-of-document token


def run(arguments: argparse.Namespace) -> int:
    if (arguments.config is None) == (arguments.text is None):
        raise ValueError("tokenizer train reads either a configuration's data or --text GLOB: give one of them")
    sources: tuple[Source, ...]
    if arguments.text is not None:
        sources = (TextFiles(glob=arguments.text),)
    else:
        # The configuration may name the file that is to be made.
        changes = [*arguments.set, "data.tokenizer=@ByteTokenizer()"]
        config = load(arguments.config, changes, import_from=arguments.import_from).config
        sources = config.data.sources
    tokenizer = train_tokenizer(*sources, vocab_size=arguments.vocab_size, path=arguments.out, progress=True)
    print(f"{arguments.out}: {tokenizer.vocab_size} tokens")
    print(f"use it with --set data.tokenizer='@HuggingFaceTokenizer(path=\"{arguments.out}\")'")
    return 0


def train_tokenizer(
    *sources: Source, vocab_size: int, path: str, end_of_document: str = "<|endoftext|>", progress: bool = False
) -> HuggingFaceTokenizer:
    """Train a tokenizer on the sources, read as a stream, write it to `path` whole or not at all, and return it.

    The vocabulary is smaller than `vocab_size` where the text has too few different pairs.

    Raises:
      ValueError: `vocab_size` is too small for all bytes, or the folder of `path` does not exist.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(f"{vocab_size=} must be at least {_SMALLEST_VOCABULARY}: the bytes and the end of a document.")
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"{path=} is in a folder that does not exist. Make it, or name another file.")
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_document],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    model.train_from_iterator((document.text for source in sources for document in source.documents()), trainer)
    _write(model.to_str(pretty=True), target)
    return HuggingFaceTokenizer(path=path, end_of_document=end_of_document)


def _write(content: str, target: Path) -> None:
    """Write a file so that it is complete or unchanged, whenever the process ends."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tokenizer-") as folder:
        whole = Path(folder) / target.name
        whole.write_text(content, encoding="utf-8")
        os.replace(whole, target)
