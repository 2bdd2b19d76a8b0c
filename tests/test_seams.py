"""Tests replace nothing of hag_plugin's by name: a name that moves would break them.

They count what ran (`hag_plugin.testing.count_programs`), set limits (`hag_plugin.testing.limits`)
or ask what is public. Names of torch, PyG, DGL and Python may be replaced, and so may environment
variables and entries of dicts.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

TESTS = Path(__file__).parent
PACKAGE = "hag_plugin"

ALLOWED = {
    "hag_plugin.pyg.constant.LIMIT": "a setting of users, which docs/profit.md tells of",
}

Names = dict[str, str]


def replaced(source: str) -> list[str]:
    """What a file replaces of hag_plugin's, as "line: dotted name".

    Code that a file holds in strings, for other processes, counts.
    """
    tree = ast.parse(source)
    found = _replaced(tree, {})
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            inner = _code(node.value)
            if inner is not None:
                found += [(node.lineno - 1 + line, name) for line, name in _replaced(inner, {})]
    return [f"{line}: {name}" for line, name in sorted({*found}) if name not in ALLOWED]


def _code(text: str) -> ast.Module | None:
    if PACKAGE not in text or "import" not in text:
        return None
    try:
        return ast.parse(dedent(text))
    except SyntaxError:
        return None


def _replaced(scope: ast.AST, outer: Names) -> list[tuple[int, str]]:
    """Of one scope and those inside it, which know its names."""
    own, inner = _parts(scope)
    names = _names(own, outer)
    found = [(line, name) for node in own for line, name in _of_node(node, names)]
    return found + [each for function in inner for each in _replaced(function, names)]


def _parts(scope: ast.AST) -> tuple[list[ast.AST], list[ast.AST]]:
    """The nodes of a scope, without those of the functions in it; and these."""
    own: list[ast.AST] = []
    inner: list[ast.AST] = []
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner.append(node)
        else:
            own.append(node)
            waiting += ast.iter_child_nodes(node)
    return own, inner


def _names(nodes: list[ast.AST], outer: Names) -> Names:
    """What the names of a scope are called in hag_plugin: those imported, and others for them."""
    names = dict(outer)
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    names[alias.asname or PACKAGE] = alias.name if alias.asname else PACKAGE
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for _ in range(3):  # names for names for names
        for node in nodes:
            for target, value in _bindings(node):
                called = _called(value, names)
                if called is not None:
                    names |= {n.id: called for n in ast.walk(target) if isinstance(n, ast.Name)}
    return names


def _bindings(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Assign):
        yield from ((t, node.value) for t in node.targets if isinstance(t, ast.Name | ast.Tuple))
    elif isinstance(node, ast.NamedExpr):
        yield node.target, node.value
    elif isinstance(node, ast.For | ast.comprehension):
        yield node.target, node.iter


def _called(node: ast.AST, names: Names) -> str | None:
    """The dotted name in hag_plugin of an expression, or of the first such in a list."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _called(node.value, names)
        return None if base is None else f"{base}.{node.attr}"
    if isinstance(node, ast.Subscript | ast.Starred):
        return _called(node.value, names)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return next(filter(None, (_called(each, names) for each in node.elts)), None)
    if isinstance(node, ast.Dict):
        return next(filter(None, (_called(each, names) for each in node.values)), None)
    if isinstance(node, ast.Constant | ast.JoinedStr):
        text = ast.unparse(node).lstrip("f").strip("'\"")
        return text if text.split(".")[0] == PACKAGE else None
    if isinstance(node, ast.Call) and node.args:
        function = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if function in ("getattr", "import_module"):
            return _called(node.args[0], names)
    return None


def _of_node(node: ast.AST, names: Names) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Call):
        function = ast.unparse(node.func).split(".")
        patches = function[-1] == "patch" or function[-2:] in (
            ["patch", "object"],
            ["patch", "multiple"],
        )
        if node.args and (function[-1] in ("setattr", "delattr") or patches):
            called = _called(node.args[0], names)
            if called is not None:
                rest = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and a.value]
                yield node.lineno, ".".join([called, *map(str, rest)])
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
        called = _called(node, names)
        if called is not None:
            yield node.lineno, called


def test_no_test_replaces_what_is_ours() -> None:
    found = {
        str(path.relative_to(TESTS)): replaced(path.read_text())
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
    }
    assert {path: names for path, names in found.items() if names} == {}


# That the test above can fail --------------------------------------------------------------------

IMPORT = "from hag_plugin.pyg.model import settle\nimport hag_plugin as hp\n"
WAYS = {
    "a module": ("monkeypatch.setattr(settle, 'SMALL', 0)", "hag_plugin.pyg.model.settle.SMALL"),
    "a class": ("patch.setattr(hp.HAG, 'matches', f)", "hag_plugin.HAG.matches"),
    "a name": ("monkeypatch.setattr('hag_plugin.hag.x', None)", "hag_plugin.hag.x"),
    "taken away": ("monkeypatch.delattr(settle, 'f')", "hag_plugin.pyg.model.settle.f"),
    "of unittest": ("mock.patch('hag_plugin.hag.x')", "hag_plugin.hag.x"),
    "an object": ("mock.patch.object(settle, 'f')", "hag_plugin.pyg.model.settle.f"),
    "a decorator": ("@patch('hag_plugin.hag.x')\ndef g(): ...", "hag_plugin.hag.x"),
    "by hand": ("settle.SMALL = 0", "hag_plugin.pyg.model.settle.SMALL"),
    "and more": ("settle.SMALL += 1", "hag_plugin.pyg.model.settle.SMALL"),
    "several": ("a, settle.b = 1, 2", "hag_plugin.pyg.model.settle.b"),
    "setattr": ("setattr(settle, 'f', None)", "hag_plugin.pyg.model.settle.f"),
    "a loop": (
        "for m, f in ((settle, 'f'),):\n    def g(): ...\n    p.setattr(m, f, g)",
        "hag_plugin.pyg.model.settle",
    ),
    "another name": ("m = settle\nm.f = None", "hag_plugin.pyg.model.settle.f"),
    "by a call": ("getattr(hp, 'HAG').f = None", "hag_plugin.f"),
    "in a string": (f"run('''\n{IMPORT}settle.f = 0\n''')", "hag_plugin.pyg.model.settle.f"),
}
FINE = {
    "torch's": "import torch\nmonkeypatch.setattr(torch, 'empty', None)",
    "an object's": "model = hp.accelerate(net)\nmodel.x = 1\nmonkeypatch.setattr(model, 'x', 2)",
    "the environment": "monkeypatch.setenv('HAG_PLUGIN_COSTS', '')",
    "an entry": "monkeypatch.setitem(settle.KERNELS, 'f', None)",
    "a parameter": "def count(settle_of, patch):\n    patch.setattr(settle_of, 'f', 0)",
    "a list of layers": "for layer in (make(), make()):\n    layer.f = 0",
    "what is allowed": "hp.pyg.constant.LIMIT = 0",
    "words": "'''hag_plugin's layers, which import what they need.'''",
}


@pytest.mark.parametrize("where", ["at the top", "in a function", "with its own import"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_put_in_is_found(way: str, where: str) -> None:
    code, name = WAYS[way]
    source = IMPORT + code
    if where == "in a function":
        source = IMPORT + "def f(monkeypatch):\n" + _indented(code)
    elif where == "with its own import":
        source = "def f(monkeypatch):\n" + _indented(IMPORT + code)
    assert [each.split(": ")[1] for each in replaced(source)] == [name]


@pytest.mark.parametrize("way", FINE)
def test_what_may_be_replaced(way: str) -> None:
    assert replaced(IMPORT + FINE[way]) == []
    assert replaced(IMPORT + "def f(monkeypatch):\n" + _indented(FINE[way])) == []


def _indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())
