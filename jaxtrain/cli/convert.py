"""`jaxtrain convert SOURCE TARGET`: a Hugging Face folder to a run folder, or a run folder to a Hugging Face folder.

Which of the two is told by what SOURCE is. The run has checkpoint 0, parameters only, and a configuration with the
model's architecture and tokenizer and placeholders for the rest: it generates at once, and trains when it is told on
what. Weights pass through a piece at a time and keep their bits; either way, host memory is that of the two largest
tensors and a few chunks (surgery/checkpoint_item.py). What else lay in the Hugging Face folder (tokenizer, token ids,
chat templates, generation_config.json) waits in the run's huggingface/ for the way back. A run with another tokenizer
is exported with that one, and with its id for the end of a text.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
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
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.checkpoint_item import open_params, write_params
from jaxtrain.surgery.huggingface import FAMILIES, export_folder, open_folder
from jaxtrain.surgery.huggingface.files import own_file, read_json
from jaxtrain.surgery.huggingface.token_ids import GENERATION, TOKEN_IDS, special_ids
from jaxtrain.surgery.whole_folder import whole_folder
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder, SaveError, is_full
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.manifest import read_manifest, write_manifest
from jaxtrain.train.phases import Phase
from jaxtrain.train.trained import trained_model

CARRIED = "huggingface"  # in the run folder
TEMPLATES = "additional_chat_templates"  # a folder
TOKENIZER_SIDE = (  # a tokenizer's own files, and what lies beside them
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
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
            import_run(source, target, arguments.set, arguments.import_from)
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


def import_run(source: Path, target: Path, overrides: Sequence[str], import_from: Sequence[str]) -> None:
    """Make a run folder, whole or not at all."""
    model, params = open_folder(source)
    tokenizer = tokenizer_of(source) or ByteTokenizer()
    reason = misfit(tokenizer, model)
    config = None if reason else configuration(model, tokenizer)
    if overrides and not config:
        raise ValueError(f"--set: there is no configuration to change, as {reason}; leave it out")
    with whole_folder(target) as path:
        folder = RunFolder(path)
        carry(source, path / CARRIED, "config.json", GENERATION)
        write_params(folder.checkpoints / "0", params)
        write_manifest(folder.checkpoints / "0")
        if config:
            RunFiles.of(config).write(folder)
        else:
            (path / MODEL_ONLY).write_text(render(model), encoding="utf-8")
        if overrides:
            RunFiles.of(load(folder.config, overrides, import_from=import_from).config).write(folder)
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
    told, token = (settings(source, file.name).get(key) for key in ("add_bos_token", "bos_token"))
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
    token = settings(source, "tokenizer_config.json").get("eos_token")
    if isinstance(token, dict):
        token = token.get("content", token)
    if not isinstance(token, str | None):
        raise ValueError(f"{source / 'tokenizer_config.json'}: eos_token is no text: make it one, or null")
    if token is None:
        ids = special_ids(source, "config.json").get("eos_token_id")
        first = ids[0] if isinstance(ids, list) and ids else ids
        token = tokenizer.token(first) if isinstance(first, int) else None
    return token


# -- out --------------------------------------------------------------------------------------------------------


def export_run(folder: RunFolder, target: Path, arguments: argparse.Namespace) -> None:
    trusted, only = arguments.import_from, folder.path / MODEL_ONLY
    config = load(folder.config, arguments.set, import_from=trusted).config if folder.config.exists() else None
    if config:
        say_what_is_read(folder, config)
    model = config.model if config else load(only, arguments.set, root=DecoderConfig, import_from=trusted).config
    tokenizer, carried = config.data.tokenizer if config else None, folder.path / CARRIED
    token_ids, generation = special_tokens(tokenizer, carried)
    with weights_of(folder, model, config, arguments.weights) as (step, params), whole_folder(target) as path:
        export_folder(
            model,
            params,
            path,
            family=arguments.family or settings(carried, "config.json").get("model_type"),
            dtype=arguments.dtype,
            token_ids=token_ids,
            generation=generation,
        )
        add_tokenizer(path, tokenizer, carried)
    print(f"{model.parameter_count:,} parameters of step {step} of {folder.path}, as {target}")
    if carried.exists() and not came_with(tokenizer, carried):
        print("the run has another tokenizer than was imported with it: what belonged to that one is left out")


def special_tokens(tokenizer: Tokenizer | None, carried: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return token ids, and generation_config.json: what was imported with the tokenizer, or else the tokenizer's."""
    own = {}
    if tokenizer:
        own = {"bos_token_id": next(iter(tokenizer.beginning), None), "eos_token_id": tokenizer.end_of_document_id}
    generation = settings(carried, GENERATION)
    if came_with(tokenizer, carried):
        return own | special_ids(carried, "config.json"), generation
    return own, {key: value for key, value in generation.items() if key not in TOKEN_IDS}


def add_tokenizer(target: Path, tokenizer: Tokenizer | None, carried: Path) -> None:
    if came_with(tokenizer, carried):
        carry(carried, target)
    if type(tokenizer) in TOKENIZER_FILES:
        shutil.copy(tokenizer.path, target / TOKENIZER_FILES[type(tokenizer)])
    if isinstance(tokenizer, HuggingFaceTokenizer) and not (target / "tokenizer_config.json").exists():
        # Without it transformers takes the tokenizer that is usual for the family, special tokens and all.
        text = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.end_of_document}
        if tokenizer.beginning:
            text["bos_token"] = tokenizer.token(tokenizer.beginning[0])
        (target / "tokenizer_config.json").write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


def came_with(tokenizer: Tokenizer | None, carried: Path) -> bool:
    """Tell whether a tokenizer is the one that was imported, to which what was carried belongs."""
    if type(tokenizer) in TOKENIZER_FILES:
        file = carried / TOKENIZER_FILES[type(tokenizer)]
        return file.exists() and Path(tokenizer.path).read_bytes() == file.read_bytes()
    return tokenizer is None or not any((carried / name).exists() for name in TOKENIZER_FILES.values())


@contextlib.contextmanager
def weights_of(
    folder: RunFolder, model: DecoderConfig, config: TrainConfig | None, weights: str | None
) -> Iterator[tuple[int, ParamTree]]:
    """Give the step and the parameters of the latest valid checkpoint; averages pass through memory whole."""
    if weights and not config:
        raise ValueError(f"{weights=}: the run kept no averages; leave it out")
    if config and (weights or config.optimizer.averages):
        mesh = mesh_at_hand(config.mesh, model)
        run = {"model": model, "optimizer": config.optimizer, "hooks": config.hooks, "mesh": mesh, "weights": weights}
        at, found = trained_model(folder, **run)
        yield at, found.params
        return
    step = Checkpoints(folder.checkpoints).latest_valid()
    if step is None:
        raise ValueError(f"{folder.path}: no finished checkpoint to export; train first, or wait for the first save")
    path = folder.checkpoints / str(step)
    with open_params(path, abstract_model(model).shapes.params, layout=read_manifest(path).layout) as params:
        yield step, params


# -- both -------------------------------------------------------------------------------------------------------


def carry(source: Path, target: Path, *others: str) -> None:
    """Copy what a Hugging Face folder has of its tokenizer, and other files that it may have."""
    templates = (f"{TEMPLATES}/{file.name}" for file in (source / TEMPLATES).glob("*.jinja"))
    target.mkdir(exist_ok=True)
    for name in (*TOKENIZER_SIDE, *sorted(templates), *others):
        if file := own_file(source, name):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(file, target / name)


def settings(folder: Path, name: str) -> dict[str, Any]:
    """Return what a JSON file of a Hugging Face folder holds; {} where there is none."""
    file = own_file(folder, name)
    return read_json(file) if file else {}
