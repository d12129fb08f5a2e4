"""Record what lm-eval's own Hugging Face model says of a tiny model, for tests/train/test_scoring.py and its like.

    scripts/peers/setup.sh ENVIRONMENT && ENVIRONMENT/bin/pip install 'lm-eval[hf]==0.4.13'
    ENVIRONMENT/bin/python scripts/peers/harness.py

The model is tests/golden/huggingface/llama, with a tokenizer of single letters that is made here. Written below
tests/golden/harness: tokenizer.json, the tasks' data, and golden.json with all requests, answers and metrics.
"""

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

ROOT = Path(__file__).parents[2]
MODEL, GOLDEN = ROOT / "tests/golden/huggingface/llama", ROOT / "tests/golden/harness"
TASKS = ("choices", "prose", "answers")
LETTERS = [chr(code) for code in range(32, 126)]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer of single letters, which puts <s> before a text."""
    vocabulary = {text: number for number, text in enumerate([*SPECIAL.values(), *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def write_data(lm: HFLM) -> None:
    """Write the data of the tasks. To every second question, what the model itself says is the answer, or a choice."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(draw.choices("abcdefgh ijklm", k=length)).strip() or "a"

    def said(question: str, tokens: int) -> str:
        ids = torch.tensor([lm.tok_encode(question)[-(64 - tokens) :]])
        written = lm.model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
        return lm.tok_decode(written.tolist())

    choices = []
    for length in (1, 3, 8, 20, 40, 90, 5, 12):
        question = text(length)
        own = said(f"Q: {question} A:", 2) if length % 2 == 0 else ""
        options = [text(draw.randint(1, 9)) for _ in range(3)]
        choices.append({"question": question, "choices": [f" {options[0]}", own or options[1], options[2]], "gold": 1})
    prose = [{"text": " ".join(text(6) for _ in range(words))} for words in (1, 4, 9, 10, 31)]
    answers = []
    for length in (2, 30, 7, 70, 15):  # 70 is more than the context has room for
        question = text(length)
        own = said(f"{question}:", 20).split("K")[0].split("5")[0]
        answers.append({"question": question, "answer": own if len(answers) % 2 == 0 else "none"})
    for name, rows in zip(TASKS, (choices, prose, answers), strict=True):
        (GOLDEN / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ids_of(lm: HFLM, context: str, continuation: str) -> list[list[int]]:
    return list(map(list, lm._encode_pair(context, continuation)))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(MODEL, folder, dirs_exist_ok=True)
        make_tokenizer().save(str(GOLDEN / "tokenizer.json"))
        shutil.copy(GOLDEN / "tokenizer.json", folder)
        told = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(told))
        lm = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4)
        assert lm.max_length == 64 and lm.tok_encode("ab") == [0, 67, 68], (lm.max_length, lm.tok_encode("ab"))
        write_data(lm)
        os.chdir(GOLDEN / "tasks")  # data files are named relative to it
        manager = TaskManager(include_path=str(GOLDEN / "tasks"), include_defaults=False)
        found = simple_evaluate(model=lm, tasks=list(TASKS), task_manager=manager, log_samples=True)
        golden: dict = {"results": {}}
        for task in TASKS:
            numbers = found["results"][task]
            golden["results"][task] = {name: value for name, value in numbers.items() if isinstance(value, float)}
            pairs = [
                (list(asked), said[0])
                for sample in found["samples"][task]
                for asked, said in zip(sample["arguments"], sample["resps"], strict=True)
            ]
            golden[task] = [[*asked[:2], said] if task == "choices" else [asked[0], said] for asked, said in pairs]
        golden["tokens"] = [ids_of(lm, context, continuation) for context, continuation, _ in golden["choices"]]
        (GOLDEN / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
