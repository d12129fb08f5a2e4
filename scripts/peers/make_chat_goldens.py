"""Record how `transformers` writes and encodes a chat by templates of the shapes that published models have.

    ENVIRONMENT/bin/python scripts/peers/make_chat_goldens.py tests/golden/chats.json

The environment needs jinja2, and no PyTorch. Templates and tokenizers are those of tests/data/chat_shapes.py.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/data"))
from chat_shapes import CHAT, SHAPES, Shape


def golden(shape: Shape) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=shape.save_tokenizer(Path(folder)),
            bos_token=shape.begin_of_document,
            eos_token=shape.special[-1],
            chat_template=shape.template,
        )
    options = {"return_dict": False, "tokenize": True}
    return {
        "text": tokenizer.apply_chat_template(CHAT, tokenize=False),
        "ids": tokenizer.apply_chat_template(CHAT, **options),
        "prompt": tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=True, **options),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    content = {"transformers": transformers.__version__, **{name: golden(shape) for name, shape in SHAPES.items()}}
    parser.parse_args().file.write_text(json.dumps(content, indent=None).replace("}, ", "},\n") + "\n")
