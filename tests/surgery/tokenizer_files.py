"""Tokenizer files as published models have them, to put beside weights."""

import json

import tokenizers


def add_tokenizer(folder):
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"def": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    model.add_special_tokens(["<eos>"])
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<eos>"}}')


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def add_chat(folder):
    """What published chat models have beside a tokenizer, each file with a line that nobody else would write."""
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(TEMPLATE + "tools")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": 0.6}')
    tokenizer = {"eos_token": {"content": "<eos>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, "def": 3}


BEGINS = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


def add_special_tokens(folder, processor, told):
    """Make a tokenizer like that of Llama, and what its tokenizer_config.json tells."""
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(PIECES, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(["<s>", "</s>"])
    if processor:
        model.post_processor = processor
    model.save(str(folder / "tokenizer.json"))
    text = {"eos_token": "</s>", "bos_token": {"content": "<s>"}} | told
    (folder / "tokenizer_config.json").write_text(json.dumps(text))
