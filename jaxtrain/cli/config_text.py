"""A listing of a configuration: every key with its value and where that came from."""

from rich.text import Text

from jaxtrain.cli.config_file import LoadedConfig
from jaxtrain.cli.config_place import ORIGIN as OVERRIDE
from jaxtrain.cli.config_tree import DEFAULT
from jaxtrain.record.walk import describe, entries


def leaf_count(config: object) -> int:
    """Return the number of keys that hold plain values."""
    return sum(not isinstance(value, type) for _, value in entries(config))


def show(loaded: LoadedConfig) -> Text:
    """Return every path, as `--set` takes it, with its value and origin, one a line."""
    rows = [(path, describe(value), loaded.origins[path]) for path, value in entries(loaded.config) if path]
    paths, values = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    styles = {DEFAULT: "dim", OVERRIDE: "bold yellow"}
    text = Text()
    for path, value, origin in rows:
        text.append(f"{path:{paths}}  {value:{min(values, 60)}}  ")
        text.append(f"{origin}\n", style=styles.get(origin, "cyan"))
    return text.append(f"{leaf_count(loaded.config)} keys")
