"""Give an exported run of bytes the files of a tokenizer and a chat template, as published chat models have them.

    jaxtrain convert runs/quickstart published
    python scripts/add_chat_tokenizer.py published

The tokens are those of the run: a byte each, and one that ends a document. Two more begin and end a message.
"""

import argparse
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

END, BEGIN_MESSAGE, END_MESSAGE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def add_chat_tokenizer(folder: Path) -> None:
    _tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _tokenizer() -> tokenizers.Tokenizer:
    """Return a tokenizer in which byte b has the id b."""
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model = tokenizers.Tokenizer(models.BPE({letter: byte for byte, letter in _letters().items()}, []))
    model.pre_tokenizer, model.decoder = by_bytes, decoders.ByteLevel()
    model.add_special_tokens([END, BEGIN_MESSAGE, END_MESSAGE])
    return model


def _letters() -> dict[int, str]:
    """Return the letter that stands for each byte in the files of byte-level tokenizers (GPT-2)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(others)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a Hugging Face folder, as `jaxtrain convert` writes it")
    add_chat_tokenizer(parser.parse_args().folder)
