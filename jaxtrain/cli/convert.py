"""`jaxtrain convert SOURCE TARGET`: a Hugging Face folder to a run folder, or a run folder to a Hugging Face folder.

Which of the two is told by what SOURCE is. The run has checkpoint 0, parameters only, and a configuration with the
model's architecture and tokenizer and placeholders for the rest: it generates at once, and trains when it is told on
what. Weights pass through a piece at a time and keep their bits; either way, host memory is that of the two largest
tensors and a few chunks (surgery/checkpoint_item.py). What else lay in the Hugging Face folder (tokenizer files, token
ids) waits in the run's huggingface/ for the way back.
"""

import argparse
import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_override import add_set_argument
from jaxtrain.cli.config_text import render
from jaxtrain.cli.finished import mesh_at_hand, say_what_is_read
from jaxtrain.cli.kept_files import RunFiles
from jaxtrain.cli.neighbours import check_exists
from jaxtrain.config import TrainConfig
from jaxtrain.data import ByteTokenizer, DataConfig, HuggingFaceTokenizer, SentencePiece, StandardLibrary, Tokenizer
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.optim.optimizers import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.checkpoint_item import open_params, write_params
from jaxtrain.surgery.huggingface import FAMILIES, export_folder, open_folder
from jaxtrain.surgery.huggingface.tensor_files import read_json
from jaxtrain.surgery.whole_folder import whole_folder
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder, SaveError, is_full
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.manifest import write_manifest
from jaxtrain.train.phases import Phase
from jaxtrain.train.trained import trained_params

CARRIED = "huggingface"  # in the run folder
CARRIED_FILES = (  # beside config.json
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
CARRIED_SETTINGS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER_FILES = {HuggingFaceTokenizer: "tokenizer.json", SentencePiece: "tokenizer.model"}
NO_TOKENIZER = f"no {' or '.join(TOKENIZER_FILES.values())}"
MODEL_ONLY = "model.gin"  # in place of config.gin where no tokenizer is at hand that fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a Hugging Face folder, or the folder of a run")
    parser.add_argument("target", type=Path, help="the folder to make: the other kind")
    parser.add_argument("--family", choices=tuple(FAMILIES), help="on export: the family, if several express the model")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="on export: round the weights to it"
    )
    parser.add_argument("--weights", metavar="NAME", help="on export: an average that the run kept (ema, lawa)")
    add_set_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    source, target = arguments.source, arguments.target
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists: name a new folder")
    check_exists(source)
    try:
        if RunFolder(source).is_used:
            export_run(RunFolder(source), target, arguments)
        elif (source / "config.json").exists():
            if arguments.family or arguments.dtype or arguments.weights:
                raise ValueError("--family, --dtype and --weights are for export: leave them out when importing")
            import_run(source, target, arguments.set)
        else:
            raise ValueError(
                f"{source} is neither a run (config.gin, checkpoints/) nor a Hugging Face folder (config.json)"
            )
    except (OSError, ValueError) as error:  # both: TensorStore has ValueErrors
        if is_full(error):
            raise SaveError(f"{target} could not be written", error) from error
        raise
    return 0


# -- in ---------------------------------------------------------------------------------------------------------


def import_run(source: Path, target: Path, overrides: Sequence[str]) -> None:
    """Make a run folder, whole or not at all."""
    model, params = open_folder(source)
    tokenizer = tokenizer_of(source) or ByteTokenizer()
    reason = misfit(tokenizer, model)
    config = None if reason else configuration(model, tokenizer)
    if overrides and not config:
        raise ValueError(f"--set: there is no configuration to change, as {reason}; leave it out")
    with whole_folder(target) as path:
        folder = RunFolder(path)
        carry(source, path / CARRIED)
        shutil.copy(source / "config.json", path / CARRIED)
        write_params(folder.checkpoints / "0", params)
        write_manifest(folder.checkpoints / "0")
        (path / MODEL_ONLY).write_text(render(model), encoding="utf-8")
    if config:
        try:
            folder = RunFolder(target)
            RunFiles.of(config).write(folder)
            if overrides:
                RunFiles.of(load(folder.config, overrides).config).write(folder)
        except (OSError, ValueError):
            shutil.rmtree(target)
            raise
        (target / MODEL_ONLY).unlink()
    print(f"{model.parameter_count:,} parameters from {source}; the run is in {target}")
    if config:
        if isinstance(config.data.tokenizer, ByteTokenizer):
            print(f"{source} has {NO_TOKENIZER}: the run's config.gin takes bytes; set data.tokenizer if not so")
        print(f'next: jaxtrain generate {target} --prompt "Once"')
    else:
        print(f"it has {MODEL_ONLY} and no config.gin, as {reason}; it can be exported again")


def misfit(tokenizer: Tokenizer, model: DecoderConfig) -> str | None:
    """Say why a run of the model cannot have a tokenizer, or return None."""
    if tokenizer.vocab_size > model.vocab_size:
        whose = f"there is {NO_TOKENIZER}, bytes are" if isinstance(tokenizer, ByteTokenizer) else "its tokenizer has"
        return f"{whose} {tokenizer.vocab_size} tokens and the model {model.vocab_size}"
    try:
        _ = tokenizer.beginning, tokenizer.end_of_document_id
    except ValueError as error:
        return str(error).removesuffix(".")
    return None


def configuration(model: DecoderConfig, tokenizer: Tokenizer) -> TrainConfig:
    """Return a run of the model, its data and steps being placeholders."""
    return TrainConfig(
        model=model,
        data=DataConfig(source=StandardLibrary(), tokenizer=tokenizer),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-5, warmup_steps=100)),
        phases=(Phase(steps=1000, batch_size=8, sequence_length=min(1024, model.max_length)),),
        hooks=(Checkpoint(every_steps=500),),
    )


def tokenizer_of(source: Path) -> Tokenizer | None:
    for kind, name in TOKENIZER_FILES.items():
        if (source / name).exists():
            tokenizer = kind(path=str(source / name))
            tokenizer = dataclasses.replace(tokenizer, begin_of_document=begin_of_document(source, tokenizer))
            end = end_of_document(source, tokenizer) if kind is HuggingFaceTokenizer else None
            return dataclasses.replace(tokenizer, end_of_document=end) if end else tokenizer
    return None


def begin_of_document(source: Path, tokenizer: HuggingFaceTokenizer | SentencePiece) -> bool | str:
    """Return what is put before texts: by tokenizer_config.json, and where that does not tell, by the file itself.

    A SentencePiece model does not tell; those of Llama, Mistral and Gemma were trained with the piece that they have.
    """
    file = source / "tokenizer_config.json"
    told, token = (settings(file).get(key) for key in ("add_bos_token", "bos_token"))
    if not isinstance(told, bool | None):
        raise ValueError(f"{file}: add_bos_token is {told!r}: make it true or false")
    if isinstance(tokenizer, SentencePiece):
        return tokenizer.has_begin_of_sequence if told is None else told
    if told is None or told == bool(tokenizer.beginning):
        return told is not False
    print(f"{file} has add_bos_token {told}, and tokenizer.json does not do so: the run does, see begin_of_document")
    if not told:
        return False
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise ValueError(
            f"{file}: add_bos_token is true, and bos_token is no text: make it one, or add_bos_token false"
        )
    return token


def end_of_document(source: Path, tokenizer: HuggingFaceTokenizer) -> str | None:
    """Return the token that ends a text, by tokenizer_config.json or by the id in config.json."""
    token = settings(source / "tokenizer_config.json").get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        ids = settings(source / "config.json").get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        token = tokenizer.token(first) if isinstance(first, int) else None
    return token


# -- out --------------------------------------------------------------------------------------------------------


def export_run(folder: RunFolder, target: Path, arguments: argparse.Namespace) -> None:
    config = load(folder.config, arguments.set).config if folder.config.exists() else None
    if config:
        say_what_is_read(folder, config)
    model = config.model if config else load(folder.path / MODEL_ONLY, arguments.set, root=DecoderConfig).config
    step, params = weights_of(folder, model, config, arguments.weights)
    given = settings(folder.path / CARRIED / "config.json")
    with whole_folder(target) as path:
        export_folder(
            model,
            params,
            path,
            family=arguments.family or given.get("model_type"),
            dtype=arguments.dtype,
            settings={key: given[key] for key in CARRIED_SETTINGS if key in given},
        )
        carry(folder.path / CARRIED, path)
        if config and (name := TOKENIZER_FILES.get(type(config.data.tokenizer))):
            shutil.copy(config.data.tokenizer.path, path / name)
    print(f"{model.parameter_count:,} parameters of step {step} of {folder.path}, as {target}")


def weights_of(
    folder: RunFolder, model: DecoderConfig, config: TrainConfig | None, weights: str | None
) -> tuple[int, ParamTree]:
    """Return the step and the parameters of the latest sound checkpoint; averages pass through memory whole."""
    if weights and not config:
        raise ValueError(f"{weights=}: the run kept no averages; leave it out")
    if config and (weights or config.optimizer.averages):
        mesh = mesh_at_hand(config.mesh, model)
        run = {"model": model, "optimizer": config.optimizer, "hooks": config.hooks, "mesh": mesh, "weights": weights}
        return trained_params(folder, **run)
    step = Checkpoints(folder.checkpoints).latest_sound()
    if step is None:
        raise ValueError(f"{folder.path}: no finished checkpoint to export; train first, or wait for the first save")
    _, target, _ = abstract_model(model)
    return step, open_params(folder.checkpoints / str(step), target)


# -- both -------------------------------------------------------------------------------------------------------


def carry(source: Path, target: Path) -> None:
    """Copy what a Hugging Face folder has beside configuration and weights."""
    target.mkdir(exist_ok=True)
    for name in CARRIED_FILES:
        if (source / name).exists():
            shutil.copy(source / name, target)


def settings(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}
