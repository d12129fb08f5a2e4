"""What a configuration names in other folders: `FromRun(path=...)` gets the model of that run's config.gin.

So the configuration of a run that begins with another's weights says what the other was, even when that is gone. In the
same way `StoredLogits(path=...)` gets what tells its logits from others.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from jaxtrain.cli.config_tree import Items, Leaf, Node, Tree, build


def attach_models(tree: Tree, read: Callable[[Path], Node]) -> None:
    """Give every `FromRun` without a model that of its run. `read` returns the tree of a configuration file.

    Raises:
        ValueError: the run has no configuration, or its weights are not those it is evaluated with; or there are no
            logits.
    """
    # Imported here: a command that draws schedules has no use for JAX, and is a second faster without.
    from jaxtrain.optim.base import Optimizer
    from jaxtrain.train import initial, teachers

    for node in _nodes(tree):
        if node.cls is teachers.StoredLogits:
            _attach_logits(node)
        if node.cls not in (initial.FromRun, teachers.FromRun) or not _is_none(node.children.get("model")):
            continue
        match node.children.get("path"):
            case Leaf(value=str() as path, origin=origin):
                file = Path(path) / "config.gin"
                if not file.is_file():
                    raise ValueError(f"{origin}: path={path!r}: there is no run with a config.gin; name its folder")
                run = read(file)
                optimizer = build(run.children["optimizer"], {})
                if isinstance(optimizer, Optimizer) and optimizer.averages:
                    raise ValueError(
                        f"{origin}: path={path!r}: its optimizer is evaluated with an average of its weights; convert "
                        "the run to a Hugging Face folder and that to a run, which then has the average"
                    )
                node.children["model"] = run.children["model"]


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
