"""Record what `transformers` answers with a chat model that `jaxtrain convert` wrote, for tests/cli/test_chat.py.

    python -m pytest -n 0 --basetemp=TEMPORARY tests/cli/test_chat.py -k stranger
    ENVIRONMENT/bin/python scripts/peers/make_chat_export_golden.py TEMPORARY/*/answering tests/golden/chat_export.json

The test leaves the folder, and fails where it exports anything else than what was recorded. Recorded are the greedy
answer and the token that ends it, the least distance between the two greatest logits on the way, and what the folder
holds.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from exported import exported

CHAT = [{"role": "user", "content": "Hello!"}]


def answer(folder: Path) -> dict:
    """Return the answer up to the stop token, which transformers takes from the folder's own files."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    told = model.generate(**asked, do_sample=False, max_new_tokens=30, output_logits=True, return_dict_in_generate=True)
    ids = told.sequences[0, asked["input_ids"].shape[1] :].tolist()
    first, second = torch.stack(told.logits)[:, 0].topk(2).values.T
    return {
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "ids": ids,
        "margin": round(float((first - second).min()), 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("golden", type=Path)
    arguments = parser.parse_args()
    content = {"transformers": transformers.__version__, **answer(arguments.folder)}
    content["exported"] = exported(arguments.folder)
    arguments.golden.write_text(json.dumps(content, indent=1) + "\n")
