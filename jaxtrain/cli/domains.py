"""`jaxtrain domains CONFIG FILE --number K`: find the domains of a text, for experts that each learn one of them.

It prints the size of each domain and the tokens that tell it from the others, and the command that trains the experts.
"""

import argparse
import dataclasses
import shlex

import numpy as np
from rich.console import Console

from jaxtrain.cli.config_file import load
from jaxtrain.cli.data_streams import Stores
from jaxtrain.config import TrainConfig
from jaxtrain.data import Tokenizer
from jaxtrain.data.domains import DomainsFile

TYPICAL = 8  # tokens that are shown of a domain


def run(arguments: argparse.Namespace) -> int:
    config: TrainConfig = load(arguments.config, arguments.set, import_from=arguments.import_from).config
    [*sources] = config.data.sources
    if len(sources) > 1 or config.data.source is not sources[0]:
        raise ValueError(f"data.source={config.data.source!r}: must be one source; domains take the place of a mixture")
    if arguments.file.exists():
        raise ValueError(f"{arguments.file} exists: name a new file")
    sources[0].check()
    [store] = Stores(Console(stderr=True))(config.data)
    tokenizer = config.data.tokenizer
    found = DomainsFile.of(store, tokenizer, number=arguments.number, seed=arguments.seed)
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    found.write(arguments.file)
    for index, typical in enumerate(typical_tokens(found, tokenizer)):
        chosen = found.labels == index
        print(f"domain {index}: {chosen.sum():,} documents, {store.lengths[chosen].sum():,} tokens; {typical}")
    source = f"@Domain(source={written(sources[0])}, path={str(arguments.file)!r}, index=0)"
    grid = f"data.source.index={','.join(map(str, range(found.number)))}"
    options = [part for text in arguments.set for part in ("--set", text)]
    options += [part for text in arguments.import_from for part in ("--import-from", text)]
    command = ["jaxtrain", "sweep", arguments.config, *options, "--set", f"data.source={source}", "--grid", grid]
    print(f"next: {shlex.join(command)}")
    return 0


def typical_tokens(domains: DomainsFile, tokenizer: Tokenizer) -> list[str]:
    """Return, for each domain, the tokens in which its centre exceeds the mean of all centres most."""
    above = domains.centres - domains.centres.mean(axis=0)
    return [" ".join(repr(tokenizer.decode([token])) for token in np.argsort(-row)[:TYPICAL]) for row in above]


def written(value: object) -> str:
    """Return an object of a configuration as `--set` reads it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))}{',' if len(value) == 1 else ''})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    cls = type(value)
    given = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init]
    return f"@{cls.__module__}.{cls.__qualname__}({', '.join(f'{name}={written(item)}' for name, item in given)})"
