"""Which tests start processes: found in their source, so that none is forgotten.

They take seconds each, and are marked `slow` by conftest.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
MODULES = ("subprocess", "multiprocessing", "torch.multiprocessing", "concurrent.futures.process")
NAMES = {"subprocess", "multiprocessing", "Popen", "ProcessPoolExecutor"}
NAMES |= {"fork", "forkpty", "posix_spawn", "popen"}  # of os
NAMES |= {"num_workers"}  # of a loader


@cache
def starting(path: Path) -> frozenset[str]:
    """The functions and other names of a file that start processes when they are used.

    Those that mention a module which starts processes, and those that mention others of these, be
    they in the same file, imported from another one of the tests, or fixtures. A method is called
    `Class.method`.
    """
    tree = ast.parse(path.read_text())
    found = {*_imported(tree, path), *_fixtures(path)}
    mentions = {name: {*_mentioned(node)} for name, node in _definitions(tree)}
    before = -1
    while before != len(found):
        before = len(found)
        found |= {name for name, used in mentions.items() if used & (found | NAMES)}
    return frozenset(found)


def _imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """The names of imported modules and functions that start processes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.asname for a in node.names if a.name in MODULES and a.asname)
        elif isinstance(node, ast.ImportFrom):
            other = _file(node, path)
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                known = node.module in MODULES or whole in MODULES
                if known or (other is not None and alias.name in starting(other)):
                    yield alias.asname or alias.name


def _file(node: ast.ImportFrom, path: Path) -> Path | None:
    """The file of a relative import from a module of the tests."""
    if not node.level or node.module is None:
        return None
    folder = path.parents[node.level - 1]
    other = folder.joinpath(*node.module.split(".")).with_suffix(".py")
    return other if other.is_file() else None


def _fixtures(path: Path) -> Iterator[str]:
    """Those of the conftest.py files of the folders of a file that may use them."""
    if path.name != "conftest.py" and not path.name.startswith("test_"):
        return
    for folder in path.parents:
        conftest = folder / "conftest.py"
        if conftest.is_file() and conftest != path:
            yield from starting(conftest)
        if folder == TESTS:
            return


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                yield f"{node.name}.{getattr(inner, 'name', '')}", inner
            yield node.name, ast.Tuple([*node.bases], ast.Load())
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for name in ast.walk(node):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                    yield name.id, node


def _mentioned(node: ast.AST) -> Iterator[str]:
    """The names in it, those of parameters, arguments and attributes included."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr
            yield ast.unparse(each)
        elif isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, ast.keyword):
            yield from (name for name in [each.arg] if name and ast.unparse(each.value) != "0")
        elif isinstance(each, ast.Call) and ast.unparse(each.func).endswith("usefixtures"):
            yield from (arg.value for arg in each.args if isinstance(arg, ast.Constant))
