"""What a configuration names in other folders: the models of runs and of Hugging Face folders, and stored logits.

`FromRun(path=...)` gets the model of that run's config.gin, and `FromHuggingFace(path=...)` that of the folder's
config.json. So the configuration of a run that begins with such weights says what they were, even when the folder is
gone. In the same way `StoredLogits(path=...)` gets what tells its logits from others, and a schedule that begins at the
last rate of a run gets that of the run of `initial`. A file without `model` gets the model of its `initial`.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxtrain.cli.config_tree import Items, Leaf, Node, Tree, build, node_of

type Read = Callable[[Path], Node]  # the tree of a configuration file


def attach_models(tree: Tree, read: Read) -> None:
    """Give every `FromRun` and `FromHuggingFace` without a model that of its folder.

    Raises:
        ValueError: the folder has no configuration, or its weights are not those it is evaluated with; or there are no
            logits.
    """
    # Imported here: a command that draws schedules has no use for JAX, and is a second faster without.
    from jaxtrain.train import initial, teachers

    for node in _nodes(tree):
        if node.cls is teachers.StoredLogits:
            _attach_logits(node)
        if node.cls in (initial.FromRun, initial.FromHuggingFace, teachers.FromRun):
            _attach(node, read)


def attach_rates(tree: Node) -> None:
    """Give schedules that begin where another run has ended the last rate of the run of `initial`.

    Raises:
        ValueError: the run has no checkpoint, or its metrics lack the rate.
    """
    from jaxtrain.optim.schedules import Continuing
    from jaxtrain.train import initial

    source = tree.children.get("initial")
    if not isinstance(source, Node) or source.cls is not initial.FromRun:
        return
    for node in _nodes(tree):
        asks = issubclass(node.cls, Continuing) and _is_none(node.children.get("begin"))
        if asks and (rate := _last_rate(source)):
            node.children["begin"] = rate


def _last_rate(source: Node) -> Leaf | None:
    """Return the last rate of a run; None where its keys are wrong, which is said when they are built."""
    from jaxtrain.train.initial import FromRun

    given = source.children.get("step")
    step = given.value if isinstance(given, Leaf) else None
    match source.children.get("path"):
        case Leaf(value=str() as path, origin=origin) if step is None or isinstance(step, int):
            try:
                return Leaf(value=FromRun(path=path, step=step).last_rate(), origin=origin)
            except ValueError as error:
                raise ValueError(f"{origin}: {error}") from error
    return None


def attach_own_model(tree: Node, read: Read) -> None:
    """Give a configuration without a model that of its initial weights, if they have one."""
    source = tree.children.get("initial")
    if "model" in tree.children or not isinstance(source, Node):
        return
    from jaxtrain.train import initial

    if source.cls in (initial.FromRun, initial.FromHuggingFace):
        _attach(source, read)
        if isinstance(model := source.children.get("model"), Node):
            tree.children["model"] = copy.deepcopy(model)  # each is changed by itself


def _attach(node: Node, read: Read) -> None:
    from jaxtrain.train import initial

    if not _is_none(node.children.get("model")):
        return
    match node.children.get("path"):
        case Leaf(value=str() as path, origin=origin):
            try:
                of_folder = _of_hugging_face if node.cls is initial.FromHuggingFace else _of_run
                node.children["model"] = of_folder(Path(path), read)
            except (ValueError, FileNotFoundError) as error:
                raise ValueError(f"{origin}: path={path!r}: {error}") from error


def _of_hugging_face(folder: Path, read: Read) -> Tree:
    from jaxtrain.surgery.huggingface import open_folder

    return node_of(open_folder(folder)[0], str(folder / "config.json"))


def _of_run(folder: Path, read: Read) -> Tree:
    from jaxtrain.optim.base import Optimizer

    file = folder / "config.gin"
    if not file.is_file():
        raise ValueError("there is no run with a config.gin; name its folder")
    run = read(file)
    optimizer = build(run.children["optimizer"], {})
    if isinstance(optimizer, Optimizer) and optimizer.averages:
        raise ValueError(
            "its optimizer is evaluated with an average of its weights; convert the run to a Hugging Face folder and "
            "that to a run, which then has the average"
        )
    return run.children["model"]


def _attach_logits(node: Node) -> None:
    """Fill the fields of a StoredLogits that are left out."""
    from jaxtrain.train.teachers import StoredLogits

    names = [name for name in ("top_k", "vocab_size", "fingerprint") if _is_none(node.children.get(name))]
    match node.children.get("path"):
        case Leaf(value=str() as path, origin=origin) if names:
            try:
                stored = StoredLogits.of(path)
            except ValueError as error:
                raise ValueError(f"{origin}: {error}") from error
            node.children |= {name: Leaf(value=getattr(stored, name), origin=origin) for name in names}


def _nodes(tree: Tree | None) -> Iterator[Node]:
    match tree:
        case Items(children=children):
            for child in children:
                yield from _nodes(child)
        case Node(children=fields):
            yield tree
            for child in fields.values():
                yield from _nodes(child)


def _is_none(tree: Tree | None) -> bool:
    return tree is None or (isinstance(tree, Leaf) and tree.value is None)
