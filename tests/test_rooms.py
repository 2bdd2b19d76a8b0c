"""Imports run one way: no circle of files, and no import from a room to one above it.

All imports count, those inside functions and under TYPE_CHECKING, too, and calls of
`import_module` with a name that is written there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hag_plugin"

# From the ground up. A file belongs to the first pattern that it matches; files of a floor may
# import each other, and whatever is further down.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("kernels", "kernels._cpu"),
    # the ground: what knows neither graphs nor layers
    (
        *("files", "units", "modes", "recall", "explanation", "adapters", "scripting", "starting"),
        *("saved", "kept", "devices", "observers", "version", "reducers", "limits", "occasions"),
        *("strangers", "notebook"),
        "arguments",
    ),
    ("hag", "hag.*"),
    ("kernels.triton", "kernels.triton.*"),
    ("ops", "ops.*"),
    ("sequence", "sequence.*"),
    ("layers", "layers.*"),
    ("testing", "exchange"),
    ("pyg", "pyg.*", "dgl", "dgl.*", "parallel", "parallel.*"),
    ("",),  # the package itself, with the names that users import
    ("data", "data.*", "demo", "demo.*"),
    ("cli", "cli.*", "__main__"),
)
# Rooms of one floor that do not know each other.
APART = (("pyg", "dgl"),)
# The rooms inside of rooms, from the ground up.
PARALLEL: tuple[tuple[str, ...], ...] = (
    ("layouts",),
    ("ranks", "ranks.*", "graphs", "graphs.*"),
    ("machine", "machine.*", "model", "model.*"),
    ("strategies", "strategies.*"),
    ("search", "search.*"),
    ("simulation", "simulation.*", "execution", "execution.*"),
    ("report", "report.*"),
    ("",),
)

ADAPTER: tuple[tuple[str, ...], ...] = (
    ("aggregation", "aggregation.*"),
    ("recipes", "recipes.*"),
    ("data", "data.*"),
    ("model", "model.*"),
    ("",),
)
INNER = {"parallel": PARALLEL, "pyg": ADAPTER, "dgl": ADAPTER}

Imports = dict[str, set[str]]


def files_of(root: Path) -> dict[str, Path]:
    """The files of the package by their dotted names, without the package's own."""
    found = {}
    for folder, prefix in ((root / PACKAGE, ()), (root / "kernels", ("kernels",))):
        for path in folder.rglob("*.py"):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(files: dict[str, Path]) -> Imports:
    """Which files each file imports, wherever in it that is written."""
    return {name: {*_imports(name, path, files)} for name, path in files.items()}


def _imports(name: str, path: Path, files: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from filter(None, (_file(alias.name, files) for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = [PACKAGE, *name.split(".")][: None if path.stem == "__init__" else -1]
                package = package[: len(package) - (node.level - 1)]
                module = ".".join([*package, *filter(None, [module])])
            for alias in node.names:
                found = _file(f"{module}.{alias.name}", files, exact=True)
                found = _file(module, files) if found is None else found
                if found is not None:
                    yield found
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            argument = node.args[0]
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield from filter(None, (_file(str(argument.value), files),))


def _file(module: str, files: dict[str, Path], exact: bool = False) -> str | None:
    """The file of a dotted name; None where it is no file of the package."""
    head, _, rest = module.partition(".")
    if head != PACKAGE:
        return None
    return rest if rest in files else (None if exact else "")


def circles(imports: Imports) -> list[list[str]]:
    """Files that import each other in a loop, each loop once (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in imports[name] - {name}:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in imports:
        if name not in index:
            visit(name)
    return found


def floor_of(name: str, floors: tuple[tuple[str, ...], ...] = FLOORS) -> int | None:
    """The number of a file's floor; None where it has none."""
    for number, patterns in enumerate(floors):
        if any(fnmatch(name, pattern) for pattern in patterns):
            return number
    return None


def against_the_order(imports: Imports) -> list[str]:
    """The imports that run up, or between rooms that are apart."""
    found = []
    for name, others in imports.items():
        for other in others - {name}:
            up = _runs_up(name, other, FLOORS)
            (room, _, inner), (to_room, _, to_inner) = name.partition("."), other.partition(".")
            if room == to_room and room in INNER:
                up = up or _runs_up(inner, to_inner, INNER[room])
            ends = {room, to_room}
            if up or any(ends == {*pair} for pair in APART):
                found.append(f"{name or PACKAGE} imports {other or PACKAGE}")
    return sorted(found)


def _runs_up(name: str, other: str, floors: tuple[tuple[str, ...], ...]) -> bool:
    here, there = floor_of(name, floors), floor_of(other, floors)
    return here is not None and there is not None and there > here


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    if not (ROOT / PACKAGE).is_dir():
        pytest.skip("the source is not beside the tests")
    return files_of(ROOT)


def test_every_file_has_a_floor(files: dict[str, Path]) -> None:
    assert [name for name in files if floor_of(name) is None] == []
    for room, floors in INNER.items():
        inner = [name.partition(".")[2] for name in files if name.partition(".")[0] == room]
        assert [name for name in inner if floor_of(name, floors) is None] == []


def test_no_floor_names_what_is_not_there(files: dict[str, Path]) -> None:
    patterns = [p for floor in FLOORS for p in floor if p != "kernels._cpu"]
    assert [p for p in patterns if not any(fnmatch(name, p) for name in files)] == []


def test_no_circles(files: dict[str, Path]) -> None:
    assert circles(imports_of(files)) == []


def test_no_import_runs_up(files: dict[str, Path]) -> None:
    assert against_the_order(imports_of(files)) == []


# That the tests above can fail --------------------------------------------------------------------

WAYS = {
    "at the top": "from hag_plugin.{0} import {1}\n",
    "by name": "import hag_plugin.{0}.{1}\n",
    "in a function": "def f():\n    from hag_plugin.{0} import {1}\n",
    "for types": "if TYPE_CHECKING:\n    from hag_plugin.{0} import {1}\n",
    "by a call": "import importlib\nimportlib.import_module('hag_plugin.{0}.{1}')\n",
    "relative": "from ..{0} import {1}\n",
    "a name of it": "from hag_plugin.{0}.{1} import anything\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_put_in_is_found(way: str, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    for room, file in (("hag", "low"), ("ops", "high"), ("pyg", "one"), ("dgl", "other")):
        folder = tmp_path / PACKAGE / room
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / f"{file}.py").write_text("")
    (tmp_path / PACKAGE / "__init__.py").write_text("")
    low, high = (tmp_path / PACKAGE / name for name in ("hag/low.py", "ops/high.py"))
    high.write_text(WAYS[way].format("hag", "low"))
    assert against_the_order(imports_of(files_of(tmp_path))) == []
    low.write_text(WAYS[way].format("ops", "high"))
    found = imports_of(files_of(tmp_path))
    assert circles(found) == [["hag.low", "ops.high"]]
    assert against_the_order(found) == ["hag.low imports ops.high"]
    (tmp_path / PACKAGE / "pyg/one.py").write_text(WAYS[way].format("dgl", "other"))
    assert "pyg.one imports dgl.other" in against_the_order(imports_of(files_of(tmp_path)))


def test_the_order_inside_a_room() -> None:
    for room in ("pyg", "dgl"):
        up = {f"{room}.recipes.table": {f"{room}.model.swap"}}
        assert against_the_order(up) == [f"{room}.recipes.table imports {room}.model.swap"]
    up = {"parallel.model.layers": {"parallel.search.planner"}}
    assert against_the_order(up) == ["parallel.model.layers imports parallel.search.planner"]
    assert against_the_order({"parallel.search.planner": {"parallel.model.layers"}}) == []
