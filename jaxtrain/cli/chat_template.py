"""The chat template of a run: for talking to its model, and for its export."""

import datetime
import json
from pathlib import Path

from jaxtrain.cli.imported import CHAT_TEMPLATE, IMPORTED, TOKENIZER_CONFIG, settings
from jaxtrain.config import TrainConfig
from jaxtrain.data import Chats, DataConfig, Tokenizer
from jaxtrain.data.chat.template import ChatTemplate, special_token
from jaxtrain.train.folder import RunFolder


def last_data(config: TrainConfig) -> DataConfig:
    """Return the data of a run's last phase."""
    return config.phases[-1].data or config.data


def has_chats(config: TrainConfig) -> bool:
    return any(isinstance(source, Chats) for source in last_data(config).sources)


def run_chats(config: TrainConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the template of the chats that a run trained on, or None where it had none."""
    chats = (source for source in last_data(config).sources if isinstance(source, Chats))
    return next((source.template_for(tokenizer, today=datetime.date.today()) for source in chats), None)


def template_of(config: TrainConfig, folder: RunFolder, file: str | None) -> ChatTemplate:
    """Return the template in `file`, or that of the run's chats, or that which was imported with the run.

    Raises:
      ValueError: there is none.
    """
    tokenizer, today = last_data(config).tokenizer, datetime.date.today()
    if file is not None:
        return ChatTemplate(file, tokenizer, date=today)
    if trained := run_chats(config, tokenizer):
        return trained
    imported = folder.path / IMPORTED
    told = settings(imported, TOKENIZER_CONFIG)
    if (imported / CHAT_TEMPLATE).exists():  # transformers takes this one first
        begin = special_token(told, "bos_token") if told else None
        return ChatTemplate(str(imported / CHAT_TEMPLATE), tokenizer, bos_token=begin, date=today)
    if told.get("chat_template"):
        return ChatTemplate(str(imported / TOKENIZER_CONFIG), tokenizer, date=today)
    raise ValueError(
        f"{folder.path}: its data has no chats, and no chat template was imported with it; name one, --template FILE"
    )


def stop_tokens(template: ChatTemplate, tokenizer: Tokenizer) -> set[int]:
    """Return the ids at which an answer ends."""
    return {tokenizer.special_tokens[template.stop_token], tokenizer.end_of_document_id}


def write_template(template: ChatTemplate, folder: Path) -> None:
    """Write a template, and what its special tokens are, into an exported folder."""
    (folder / CHAT_TEMPLATE).write_text(template.text, encoding="utf-8")
    content = settings(folder, TOKENIZER_CONFIG) | {name: token for name, token in template.told.items() if token}
    content.pop("chat_template", None)
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
