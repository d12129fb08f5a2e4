"""A BPE that is trained in no time, for configurations that name the file of one."""

from pathlib import Path

from jaxtrain.cli.tokenizer import train_tokenizer
from jaxtrain.data import TextFiles


def write_tokenizer(path: Path) -> None:
    text = path.with_suffix(".txt")
    text.write_text("one word after the other, one line after the other\n" * 3)
    train_tokenizer(TextFiles(glob=str(text)), vocab_size=280, path=str(path))
