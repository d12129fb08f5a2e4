"""Chat templates of the shapes that published models have, and tokenizers with their special tokens.

The texts are written here: what a template must write is told by `written`, not by another template.
"""

from pathlib import Path
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHAT = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "Five."},
    {"role": "user", "content": "And doubled?\nIn words."},
    {"role": "assistant", "content": "Ten,\n\nof course."},
]


class Shape(NamedTuple):
    """A template; its special tokens, of which the last ends a document; and what it must write."""

    template: str
    special: tuple[str, ...]
    stop: str
    question: str
    answer: str  # with what stands before it in a prompt
    begin: str = ""
    closing: str = ""
    learned: str = "{}"  # what a model learns to write, without the stop token
    puts_spaces: bool = False  # its tokenizer puts one before a text and takes one away, as that of Llama 2 does
    joins_lines: bool = False  # its tokenizer has words of line ends, as that of Llama 3 does
    trims_offsets: bool = False  # its tokenizer says that a word begins behind its space, the library's default

    @property
    def written(self) -> str:
        turns = (self.question if message["role"] == "user" else self.answer for message in CHAT)
        texts = (turn.format(message["content"]) for turn, message in zip(turns, CHAT, strict=True))
        return self.begin + "".join(texts) + self.closing

    @property
    def begin_of_document(self) -> str | None:
        return "<s>" if "<s>" in self.special else self.begin or None

    def save_tokenizer(self, folder: Path) -> str:
        """Make the file of a tokenizer with the special tokens, and return its path."""
        model = _with_spaces() if self.puts_spaces else _of_bytes(self.joins_lines)
        if self.trims_offsets:
            model.post_processor = processors.ByteLevel(trim_offsets=True)
        # Phi-3 has tokens that take the space behind them, and others.
        model.add_special_tokens([AddedToken(token, rstrip=token in TAKES_SPACE) for token in self.special])
        model.save(str(folder / "tokenizer.json"))
        return str(folder / "tokenizer.json")


TAKES_SPACE = ("<|assistant|>", "<|end|>")
_TEXT = ["What is 2 + 3?\n\nFive. And doubled?\nIn words.", "assistant\nTen,\n\nof course.\n\n  x = 1\n" * 3]


def _of_bytes(joins_lines: bool) -> tokenizers.Tokenizer:
    """A byte-level BPE that joins letters with the space before them, and line ends with each other."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if joins_lines:
        words = pre_tokenizers.Split(tokenizers.Regex(r"\s*\n+| ?\S+|\s+"), "isolated")
        by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.pre_tokenizer = pre_tokenizers.Sequence([words, by_byte])
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(_TEXT, trainer)
    return model


def _with_spaces() -> tokenizers.Tokenizer:
    """A BPE of letters with bytes for others, which puts a space before every text."""
    letters = sorted({letter for text in _TEXT for letter in text if letter.isalnum()} | set("▁.,?+=[]/<>|"))
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁F", "▁Fi", "en"]
    ids = {token: id for id, token in enumerate(vocabulary)}
    merges = [("▁", "F"), ("▁F", "i"), ("e", "n")]
    model = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return model


SHAPES = {
    "chatml": Shape(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        stop="<|im_end|>",
        question="<|im_start|>user\n{}<|im_end|>\n",
        answer="<|im_start|>assistant\n{}<|im_end|>\n",
    ),
    "llama2": Shape(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Questions and answers must alternate.') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        stop="</s>",
        question="<s>[INST] {} [/INST]",
        answer=" {} </s>",
        learned="{} ",
        puts_spaces=True,
    ),
    "llama3": Shape(
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        stop="<|eot_id|>",
        begin="<|begin_of_text|>",
        joins_lines=True,
        question="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        answer="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    ),
    "gemma": Shape(
        "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "<start_of_turn>{{ role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        stop="<end_of_turn>",
        begin="<bos>",
        question="<start_of_turn>user\n{}<end_of_turn>\n",
        answer="<start_of_turn>model\n{}<end_of_turn>\n",
    ),
    "mistral": Shape(
        "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
        "{%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}",
        ("<s>", "[INST]", "[/INST]", "</s>"),
        stop="</s>",
        begin="<s>",
        question="[INST] {}[/INST]",
        answer=" {}</s>",
        learned=" {}",
        puts_spaces=True,
    ),
    "phi3": Shape(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        stop="<|end|>",
        question="<|user|>\n{}<|end|>\n",
        answer="<|assistant|>\n{}<|end|>\n",
        closing="<|endoftext|>",
    ),
    "zephyr": Shape(
        "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'assistant' %}\n{% generation %}{{ '<|assistant|>\n' + m['content'] + eos_token }}"
        "{% endgeneration %}\n\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        ("<s>", "</s>"),
        stop="</s>",
        question="<|user|>\n{}</s>\n",
        answer="<|assistant|>\n{}</s>\n",
        puts_spaces=True,
    ),
}
