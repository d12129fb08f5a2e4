"""`jaxtrain logits CONFIG FOLDER`: ask the teacher of a configuration once, for students to train without it."""

import argparse
import logging
import shlex

from rich.console import Console

from jaxtrain.cli.cache import keep_compilations
from jaxtrain.cli.config_file import load
from jaxtrain.config import TrainConfig
from jaxtrain.train.logits import write_logits


def run(arguments: argparse.Namespace) -> int:
    config: TrainConfig = load(arguments.config, arguments.set, import_from=arguments.import_from).config
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep_compilations()
    mesh = (config.phases[0].mesh or config.mesh).build()
    config.check_devices(mesh.size)
    options = [part for text in arguments.set for part in ("--set", text)]
    options += [part for text in arguments.import_from for part in ("--import-from", text)]
    console = Console(stderr=True)
    with console.status("asking the teacher ...") as status:
        written = write_logits(
            arguments.folder,
            model=config.model,
            objective=config.objective,
            data=config.data,
            phases=config.phases,
            seed=config.seed,
            mesh=mesh,
            command=shlex.join(["jaxtrain", "logits", arguments.config, str(arguments.folder), *options]),
            say=lambda text: status.update(text),
        )
    tokens = sum(stream.rows * stream.length for stream in written.streams.values())
    size = sum(digest[0] for stream in written.streams.values() for digest in stream.files.values())
    teacher = f"@jaxtrain.train.teachers.StoredLogits(path={str(arguments.folder)!r})"
    print(f"the {written.top_k} likeliest words of {tokens:,} tokens, {size:,} bytes, in {arguments.folder}")
    print(f"next: {shlex.join(['jaxtrain', 'train', arguments.config, *options, '--set', f'model.teacher={teacher}'])}")
    return 0
