"""The import direction of the design: never upward, never sideways, no cycles; read from the sources, every line."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = (  # a unit imports from the levels before its own
    {"jaxtrain_kernels", "axes", "shapes", "ranges", "paths", "plain_path", "technique"},
    {"mesh"},
    {"sharding"},
    {"fully_sharded"},
    {"nn"},
    {"models"},
    {"objectives", "optim", "data", "parallel", "pipeline"},
    {"surgery", "planning"},
    {"train"},
    {"record"},
    {"config"},
    {"cli"},
    {"runs"},
)
MAY_USE_KERNELS = {"jaxtrain_kernels", "nn", "optim"}
KERNELS_MAY_IMPORT = {"jax", "jaxlib", "numpy", "jaxtyping", "jaxtrain_kernels", *sys.stdlib_module_names}
LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}


def _sources() -> dict[str, str]:
    """Return the source of every module of the project by its dotted name."""
    found = {}
    for folder in (ROOT, ROOT / "kernels"):
        for path in (*folder.glob("jaxtrain/**/*.py"), *folder.glob("jaxtrain_kernels/**/*.py")):
            found[".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")] = path.read_text()
    return found


SOURCES = _sources()


def _imports(source: str) -> Iterator[str]:
    """Yield what a module imports anywhere in it, inside functions and conditions too."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(level=0):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            case ast.ImportFrom():
                raise AssertionError(f"relative import of {node.module}: write the whole name")


def _unit(module: str) -> str | None:
    """Return the part of the project that a name belongs to; None for other libraries and the root package."""
    parts = module.split(".")
    if parts[0] == "jaxtrain":
        return parts[1] if len(parts) > 1 else None
    return parts[0] if parts[0] == "jaxtrain_kernels" else None


def _violations(module: str, source: str) -> list[str]:
    unit, wrong = _unit(module), []
    for imported in _imports(source):
        other, top = _unit(imported), imported.split(".")[0]
        if other not in (None, unit) and LEVEL[other] >= LEVEL[unit]:
            wrong.append(f"{module} imports {imported}: {unit} may not import {other}")
        if top == "jaxtrain_kernels" and unit not in MAY_USE_KERNELS:
            wrong.append(f"{module} imports {imported}: kernels are reached through nn")
        elif unit == "jaxtrain_kernels" and other is None and top not in KERNELS_MAY_IMPORT:
            wrong.append(f"{module} imports {imported}: kernels import jax and numpy alone")
        if unit != "cli" and top in ("gin", "importlib"):
            wrong.append(f"{module} imports {imported}: only the command line knows gin or imports by name")
    if "__import__" in source:
        wrong.append(f"{module} hides an import in __import__")
    return wrong


def test_every_unit_has_its_place():
    assert {_unit(module) for module in SOURCES} - {None} <= set(LEVEL)
    assert len(SOURCES) > 50  # the sources were found


@pytest.mark.parametrize("unit", sorted({_unit(module) or "jaxtrain" for module in SOURCES}))
def test_imports_point_down(unit):
    own = {module: source for module, source in SOURCES.items() if (_unit(module) or "jaxtrain") == unit}
    if unit == "jaxtrain":
        assert not list(_imports(own["jaxtrain"]))
    else:
        assert [wrong for module, source in own.items() for wrong in _violations(module, source)] == []


def _edges(module: str) -> set[str]:
    """Return the modules of the project that a module names."""
    named = set()
    for imported in _imports(SOURCES[module]):
        for name in (imported, imported.rpartition(".")[0]):
            if name in SOURCES:
                named.add(name)
                break
    return named


def test_no_modules_import_each_other_in_a_circle():
    edges = {module: _edges(module) for module in SOURCES}
    while leaves := {module for module, named in edges.items() if not named}:
        edges = {module: named - leaves for module, named in edges.items() if module not in leaves}
    assert not edges, f"among these there is a cycle: {sorted(edges)}"


def _runs_at_import(module: str) -> set[str]:
    """Return the modules, of other libraries too, that importing a module of the project imports."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in SOURCES:
            waiting.append(name.rpartition(".")[0] or name)
            top = ast.unparse(ast.Module(list(_outside_functions(ast.parse(SOURCES[name]))), []))
            waiting += [full if full in SOURCES else full.rpartition(".")[0] or full for full in _imports(top)]
    return found


def _outside_functions(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the import statements that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _outside_functions(child)


SLOW = {"matplotlib", "grain", "orbax", "pyarrow", "tensorboardX", "tensorstore", "wandb"}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("jaxtrain.cli.main", {"jax", "flax", "optax", "numpy", "gin", "rich", *SLOW}),
        ("jaxtrain.cli.config", {"jax", "flax", "optax", "numpy", *SLOW}),
        ("jaxtrain.cli.schedule", {"jax", "flax", "optax", *SLOW}),
        ("jaxtrain.cli.train", SLOW),  # and so a configuration is read and its files are looked for without these
    ],
)
def test_slow_libraries_are_imported_where_they_are_used(module, without):
    assert {name.split(".")[0] for name in _runs_at_import(module)} & without == set()


def test_imports_are_followed_to_other_libraries():
    assert {"jax", "flax", "jaxtrain.train", "jaxtrain.nn.block"} <= _runs_at_import("jaxtrain.cli.train")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxtrain.nn.feed_forward.mlp", "from jaxtrain.models.decoder import Decoder"),
        ("jaxtrain.data.store", "import jaxtrain.optim"),
        ("jaxtrain.train.step", "def f():\n    from jaxtrain.cli import main"),
        ("jaxtrain.nn.feed_forward.mlp", "if TYPE_CHECKING:\n    from jaxtrain import train"),
        ("jaxtrain.models.decoder", "from jaxtrain_kernels.attention import api"),
        ("jaxtrain_kernels.attention.api", "from jaxtrain.shapes import Batch"),
        ("jaxtrain_kernels.attention.api", "import optax"),
        ("jaxtrain.config", "import gin"),
        ("jaxtrain.train.loop", "def f():\n    importlib = __import__('importlib')"),
    ],
)
def test_the_rule_catches_what_it_forbids(module, source):
    assert len(_violations(module, source)) == 1


# The last two name the keys of the configuration, `mesh.tensor`, to the user.
MAY_SPELL_AXES = tuple(
    f"jaxtrain.{unit}" for unit in ("mesh", "sharding", "fully_sharded", "parallel", "pipeline", "config", "cli")
)


def test_mesh_axes_are_spelled_in_the_mesh_alone():
    """Names of axes that are ordinary words (`data`, `context`, `stage`) cannot be told from other uses."""
    spelled = {
        f"{module}: {node.value}"
        for module, source in SOURCES.items()
        if not module.startswith(MAY_SPELL_AXES)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in ("fsdp", "tensor", "replica")
    }
    assert spelled == set()
