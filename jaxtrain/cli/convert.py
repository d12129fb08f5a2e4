"""`jaxtrain convert SOURCE TARGET`: a Hugging Face folder to a run folder, or a run folder to a Hugging Face folder.

SOURCE determines which of the two is done. With `--adapter` only adapters are converted (convert_adapter.py).

Import writes a run with checkpoint 0, which has parameters only, and a configuration. The configuration has the model's
architecture and tokenizer, and placeholders for the rest. The run can generate at once, and train once its data is set.
The other files of the Hugging Face folder (tokenizer, token ids, chat templates, generation_config.json) are kept in
the run's huggingface/ for an export. A run with another tokenizer is exported with its own tokenizer and
end-of-document id.

Weights are converted one piece at a time and keep their bits. In both directions host memory holds the two largest
tensors and a few chunks (surgery/checkpoint_item.py).
"""

import argparse
import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import jax

from jaxtrain.cli.chat_template import run_chats, stop_tokens, write_template
from jaxtrain.cli.config_file import load
from jaxtrain.cli.convert_adapter import export_run_adapter, import_run_adapter
from jaxtrain.cli.convert_tokenizer import TOKENIZER_FILES, FileTokenizer, mask_of, tokenizer_of
from jaxtrain.cli.finished import print_remarks, restored
from jaxtrain.cli.imported import IMPORTED, TOKENIZER_CONFIG, copy_tokenizer_files, settings
from jaxtrain.cli.neighbours import check_exists
from jaxtrain.config import TrainConfig
from jaxtrain.data import ByteTokenizer, DataConfig, HuggingFaceTokenizer, StandardLibrary, Tokenizer
from jaxtrain.data.examples import MaskedTokens, NextTokens
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import apart, together
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Cosine
from jaxtrain.record.files import RunFiles
from jaxtrain.record.text import render
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.surgery.checkpoint_item import open_params, write_params
from jaxtrain.surgery.huggingface import export_folder, open_folder
from jaxtrain.surgery.huggingface.tensor_files import ADAPTER
from jaxtrain.surgery.huggingface.token_ids import GENERATION, TOKEN_IDS, special_ids
from jaxtrain.surgery.linears import converted, has_plain_linears, plain
from jaxtrain.surgery.whole_folder import whole_folder
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.folder import RunFolder, SaveError, is_full
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.manifest import read_manifest, write_manifest
from jaxtrain.train.phases import Phase
from jaxtrain.train.state import initial_model
from jaxtrain.train.trained import chosen_step

NO_TOKENIZER = f"no {' or '.join(TOKENIZER_FILES.values())}"
MODEL_ONLY = "model.gin"  # in place of config.gin where no known tokenizer fits the model


def run(arguments: argparse.Namespace) -> int:
    source, target = arguments.source, arguments.target
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists: name a new folder")
    check_exists(source)
    try:
        if arguments.base and not arguments.adapter:
            raise ValueError("--base names the run that an adapter adapts: add --adapter, or leave it out")
        if arguments.adapter:
            convert_adapter(source, target, arguments)
        elif RunFolder(source).is_used:
            export_run(RunFolder(source), target, arguments)
        elif (source / ADAPTER).exists():
            raise ValueError(f"{source} is an adapter of peft: add --adapter --base RUN, the run of its model")
        elif (source / "config.json").exists():
            check_no_export_options(arguments, "--family", "--dtype", "--weights", "--step", "--best")
            import_run(source, target, arguments.set, arguments.import_from)
        else:
            raise ValueError(
                f"{source} is neither a run (config.gin, checkpoints/) nor a Hugging Face folder (config.json)"
            )
    except (OSError, ValueError) as error:  # TensorStore raises ValueError where the disk is full
        if is_full(error):
            raise SaveError(f"{target} could not be written", error) from error
        raise
    return 0


def check_no_export_options(arguments: argparse.Namespace, *flags: str) -> None:
    """Raise ValueError where an import was given a flag that only an export takes."""
    for flag in flags:
        if getattr(arguments, flag.removeprefix("--")) not in (None, False):
            raise ValueError(f"{flag} is for export: leave it out when importing")


def convert_adapter(source: Path, target: Path, arguments: argparse.Namespace) -> None:
    """Convert adapters alone, in the direction that SOURCE determines."""
    folder = RunFolder(source)
    if (source / ADAPTER).exists():
        if arguments.base is None:
            raise ValueError(f"{source} is an adapter: name the run of the model that it adapts, --base RUN")
        check_no_export_options(arguments, "--dtype", "--weights", "--step", "--best")
        if arguments.set:
            raise ValueError("--set has no meaning for an adapter: leave it out")
        trusted = {"family": arguments.family, "import_from": arguments.import_from}
        import_run_adapter(source, arguments.base, target, **trusted)
    elif folder.config.exists():
        for name in ("base", "dtype"):
            if getattr(arguments, name):
                raise ValueError(f"--{name} has no meaning for the export of an adapter: leave it out")
        config = load(folder.config, arguments.set, import_from=arguments.import_from).config
        which = {"weights": arguments.weights, "step": arguments.step, "best": arguments.best}
        export_run_adapter(folder, target, config, family=arguments.family, **which)
    else:
        raise ValueError(f"{source} is neither a run (config.gin, checkpoints/) nor an adapter ({ADAPTER})")


# -- import -----------------------------------------------------------------------------------------------------


def import_run(source: Path, target: Path, overrides: Sequence[str], import_from: Sequence[str]) -> None:
    """Write a complete run folder, or none where an error occurs."""
    model, params = open_folder(source)
    tokenizer = tokenizer_of(source) or ByteTokenizer()
    mask = mask_of(source, tokenizer)
    reason = reason_against(tokenizer, model, mask)
    config = None if reason else configuration(model, tokenizer, mask)
    if overrides and not config:
        raise ValueError(f"--set: there is no configuration to change, as {reason}; leave it out")
    with whole_folder(target) as path:
        folder = RunFolder(path)
        copy_tokenizer_files(source, path / IMPORTED, "config.json", GENERATION)
        own = apart(params, abstract_model(model).shapes)
        write_params(folder.checkpoints / "0", own.params, own.buffers)
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
        print(f'next: jaxtrain generate {target} --prompt "Once"' if model.causal else f"next: jaxtrain eval {target}")
    else:
        print(f"it has {MODEL_ONLY} and no config.gin, as {reason}; it can be exported again")


def reason_against(tokenizer: Tokenizer, model: DecoderConfig, mask: int | None) -> str | None:
    """Return the reason why the model cannot have a tokenizer, whose token `mask` hides others, or None."""
    if tokenizer.vocab_size > model.vocab_size:
        whose = f"there is {NO_TOKENIZER}, bytes are" if isinstance(tokenizer, ByteTokenizer) else "its tokenizer has"
        return f"{whose} {tokenizer.vocab_size} tokens and the model {model.vocab_size}"
    try:
        _ = tokenizer.beginning, tokenizer.end_of_document_id
    except ValueError as error:
        return str(error).removesuffix(".")
    if mask is None and not model.causal:
        return "the model fills in masked tokens, and no mask_token of its tokenizer is known"
    return None


def configuration(model: DecoderConfig, tokenizer: Tokenizer, mask: int | None) -> TrainConfig:
    """Return the configuration of a run of the model, with placeholders for data and steps."""
    examples = NextTokens() if mask is None or model.causal else MaskedTokens(mask=mask)
    return TrainConfig(
        model=model,
        data=DataConfig(source=StandardLibrary(), tokenizer=tokenizer, examples=examples),
        optimizer=AdamW(learning_rate=Cosine(peak=1e-5, warmup_steps=100)),
        phases=(Phase(steps=1000, batch_size=8, sequence_length=min(1024, model.max_length)),),
        hooks=(Checkpoint(every_steps=500),),
    )


# -- export -----------------------------------------------------------------------------------------------------


def export_run(folder: RunFolder, target: Path, arguments: argparse.Namespace) -> None:
    trusted, only = arguments.import_from, folder.path / MODEL_ONLY
    config = load(folder.config, arguments.set, import_from=trusted).config if folder.config.exists() else None
    if config:
        print_remarks(folder, config)
    model = config.model if config else load(only, arguments.set, root=DecoderConfig, import_from=trusted).config
    tokenizer, imported = config.data.tokenizer if config else None, folder.path / IMPORTED
    token_ids, generation = special_tokens(tokenizer, imported)
    chat = run_chats(config, tokenizer) if config and tokenizer else None
    if chat and tokenizer:
        generation = generation | {"eos_token_id": sorted(stop_tokens(chat, tokenizer))}
    which = {"weights": arguments.weights, "step": arguments.step, "best": arguments.best}
    with weights_of(folder, model, config, **which) as (step, params), whole_folder(target) as path:
        export_folder(
            plain(model),
            params,
            path,
            family=arguments.family or settings(imported, "config.json").get("model_type"),
            dtype=arguments.dtype,
            token_ids=token_ids,
            generation=generation,
        )
        add_tokenizer(path, tokenizer, imported)
        if chat:
            write_template(chat, path)
    print(f"{plain(model).parameter_count:,} parameters of step {step} of {folder.path}, as {target}")
    if imported.exists() and not is_imported(tokenizer, imported):
        print("the run has another tokenizer than was imported with it: what belonged to that one is left out")


def special_tokens(tokenizer: Tokenizer | None, imported: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the token ids, and the content of generation_config.json, for an export with a tokenizer.

    For the tokenizer that was imported with the run both are those of the import. For another tokenizer the ids are its
    own, and generation_config.json has no ids.
    """
    own = {}
    if tokenizer:
        own = {"bos_token_id": next(iter(tokenizer.beginning), None), "eos_token_id": tokenizer.end_of_document_id}
    generation = settings(imported, GENERATION)
    if is_imported(tokenizer, imported):
        return own | special_ids(imported, "config.json"), generation
    return own, {key: value for key, value in generation.items() if key not in TOKEN_IDS}


def add_tokenizer(target: Path, tokenizer: Tokenizer | None, imported: Path) -> None:
    if is_imported(tokenizer, imported):
        copy_tokenizer_files(imported, target)
    if has_file(tokenizer):
        shutil.copy(tokenizer.path, target / TOKENIZER_FILES[type(tokenizer)])
    if isinstance(tokenizer, HuggingFaceTokenizer) and not (target / TOKENIZER_CONFIG).exists():
        # Without this file transformers uses the family's usual tokenizer class, with its special tokens.
        content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.end_of_document}
        if tokenizer.beginning and (token := tokenizer.token(tokenizer.beginning[0])) is not None:
            content["bos_token"] = token
        (target / TOKENIZER_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def has_file(tokenizer: Tokenizer | None) -> TypeGuard[FileTokenizer]:
    """Tell whether a tokenizer is a file for which a Hugging Face folder has a name."""
    return type(tokenizer) in TOKENIZER_FILES


def is_imported(tokenizer: Tokenizer | None, imported: Path) -> bool:
    """Tell whether a tokenizer is the one that was imported with the run, to which the files in `imported` belong."""
    if has_file(tokenizer):
        file = imported / TOKENIZER_FILES[type(tokenizer)]
        return file.exists() and Path(tokenizer.path).read_bytes() == file.read_bytes()
    return tokenizer is None or not any((imported / name).exists() for name in TOKENIZER_FILES.values())


@contextlib.contextmanager
def weights_of(
    folder: RunFolder,
    model: DecoderConfig,
    config: TrainConfig | None,
    *,
    weights: str | None,
    step: int | None,
    best: bool,
) -> Iterator[tuple[int, ParamTree]]:
    """Yield the step and the arrays of the latest valid checkpoint, of `step`, or of the best.

    They are read one piece at a time. Averages, and models with other linears than plain ones, are loaded whole.
    """
    if weights and not config:
        raise ValueError(f"{weights=}: the run kept no averages; leave it out")
    if config and (weights or config.optimizer.averages or not has_plain_linears(model)):
        _, at, trained = restored(folder, config, weights=weights, step=step, best=best)
        yield at, together(_with_plain_linears(model, trained)._replace(frozen={}))
        return
    at = chosen_step(Checkpoints(folder.checkpoints), folder, config.hooks if config else (), step=step, best=best)
    path = folder.checkpoints / str(at)
    shapes, layout = abstract_model(model).shapes, read_manifest(path).layout
    with contextlib.ExitStack() as opened:
        params = opened.enter_context(open_params(path, shapes.params, layout=layout))
        buffers: ParamTree = {}
        if shapes.buffers:
            buffers = opened.enter_context(open_params(path, shapes.buffers, layout=layout, item="buffers"))
        yield at, together(ModelState(params, {}, buffers))


def _with_plain_linears(config: DecoderConfig, model: ModelState) -> ModelState:
    """Return the model with its adapters merged and its weights dequantized."""
    if has_plain_linears(config):
        return model
    start = initial_model(plain(config), jax.random.key(0))
    return jax.jit(converted, static_argnums=(1, 2))(model, config, plain(config), start)
