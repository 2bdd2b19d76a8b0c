"""Accelerated models under torch.jit, torch.onnx, torch.export and other tools that look inside."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg

import hag_plugin as hp
from hag_plugin.pyg import accelerate, restore

from ..conftest import Graph
from ..recipes.test_table import CONFIGURATIONS, FIRST, WIDTH, variants

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about tracing and TorchScript
HAS_ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
# Stock cannot be traced: it decides by values.
NOT_TRACED = {"mf"}


class Model(nn.Module):
    """Two layers, which stock scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.GCNConv(WIDTH, 8)
        self.second = pyg.SAGEConv(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Bound(nn.Module):
    """A model with its graph: only features go in."""

    def __init__(self, model: nn.Module, *arguments: Any) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, *self.arguments)


def known(model: nn.Module, *arguments: Any) -> nn.Module:
    """Accelerated, and called so often that all is on HAGs."""
    ours = accelerate(copy.deepcopy(model)).eval()
    with torch.no_grad():
        for _ in range(3):
            ours(*arguments)
    return ours


# torch.jit.script --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        lambda model: model,
        lambda model: model.first,
        lambda model: nn.ModuleList([model]),
        lambda model: nn.ModuleDict({"held": nn.ModuleList([model])}),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
)
def test_script_names_restore(part: Callable[[nn.Module], nn.Module], awkward: Graph) -> None:
    ours = known(Model(), torch.randn(awkward.num_src, WIDTH), awkward.edge_index)
    with pytest.raises(RuntimeError, match=r"hag_plugin\.restore\(model\)"):
        torch.jit.script(part(ours))
    restored = restore(part(ours))
    torch.jit.script(restored)


def test_script_after_restore(awkward: Graph) -> None:
    x = torch.randn(awkward.num_src, WIDTH)
    stock = Model()
    ours = known(stock, x, awkward.edge_index)
    expected = ours(x, awkward.edge_index)
    back = hp.restore(ours)
    assert {name: {*vars(m)} for name, m in back.named_modules()} == {
        name: {*vars(m)} for name, m in stock.named_modules()
    }
    scripted = torch.jit.script(back)
    torch.testing.assert_close(scripted(x, awkward.edge_index), expected)


# torch.jit.trace ---------------------------------------------------------------------------------


@pytest.mark.mostly_slow("lg", "gcn2")
@pytest.mark.parametrize("name", [name for name in FIRST if name not in NOT_TRACED])
def test_trace_holds_stock_code(name: str, awkward: Graph) -> None:
    """Given as an argument or held by the model, as edges or as a HAG: a file that stock reads."""
    stock = CONFIGURATIONS[name]().eval()
    x = torch.randn(awkward.num_src, WIDTH)
    plain, handed = variants(stock, x, awkward)
    plain, handed = (
        [a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
        for arguments in (plain, handed)
    )
    ours = known(stock, *plain)
    other = torch.randn_like(x)
    with torch.no_grad():
        expected = stock(other, *plain[1:])
        traces = [
            (torch.jit.trace(ours, tuple(plain), check_trace=False), plain[1:]),
            (torch.jit.trace(Bound(ours, *plain[1:]), (x,), check_trace=False), ()),
            (torch.jit.trace(Bound(ours, *handed[1:]), (x,), check_trace=False), ()),
        ]
        for traced, rest in traces:
            assert "hag_plugin::" not in str(traced.inlined_graph)
            file = io.BytesIO()
            torch.jit.save(traced, file)
            file.seek(0)
            for each in (traced, torch.jit.load(file)):
                torch.testing.assert_close(each(other, *rest), expected, rtol=1e-4, atol=1e-4)


def test_trace_leaves_the_model_as_it_is(awkward: Graph) -> None:
    """Traced for another graph than the one that is known, which stays known."""
    x = torch.randn(awkward.num_src, WIDTH)
    stock = Model()
    ours = known(stock, x, awkward.edge_index)
    (session,) = [h for h in ours._forward_pre_hooks.values() if hasattr(h, "num_hags")]
    before = session.num_hags
    assert before > 0
    traced = torch.jit.trace(ours, (x, awkward.edge_index))
    other = awkward.edge_index.flip(0)[:, ::2].contiguous()
    torch.testing.assert_close(traced(x, other), stock(x, other))
    assert session.num_hags == before
    torch.testing.assert_close(ours(x, awkward.edge_index), stock(x, awkward.edge_index))


# torch.onnx --------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [None, "edges", "hag"])
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo: bool, held: str | None, awkward: Graph, tmp_path: Path) -> None:
    """As far as stock comes: without the packages of ONNX, to the error that says so."""
    x, edges = torch.randn(awkward.num_src, WIDTH), awkward.edge_index
    stock = Model().eval()
    ours = known(stock, x, edges)
    if held == "hag":
        ours = Bound(ours, hp.build_hag(edges, num_nodes=awkward.num_src))
    elif held == "edges":
        ours = Bound(ours, edges)
    given = (x, edges) if held is None else (x,)

    def export() -> None:
        torch.onnx.export(
            ours, given, str(tmp_path / "ours.onnx"), dynamo=dynamo, verbose=False, opset_version=18
        )

    if not HAS_ONNX:
        with pytest.raises(
            (torch.onnx.errors.OnnxExporterError, ModuleNotFoundError), match="onnx"
        ):
            export()
        return
    export()
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(tmp_path / "ours.onnx"))
    names = [i.name for i in session.get_inputs()]
    inputs = {name: value.numpy() for name, value in zip(names, given, strict=True)}
    y = torch.from_numpy(session.run(None, inputs)[0])
    torch.testing.assert_close(y, stock(x, edges), rtol=1e-4, atol=1e-5)


# torch.export, torch.fx and others ---------------------------------------------------------------


@pytest.mark.mostly_slow("hag-False")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("held", ["edges", "hag"])
def test_export(held: str, strict: bool, awkward: Graph) -> None:
    """Also with the decompositions that other exporters ask for."""
    x, edges = torch.randn(awkward.num_src, WIDTH), awkward.edge_index
    stock = Model().eval()
    ours = known(stock, x, edges)
    expected = stock(x, edges)
    if held == "hag":
        bound = Bound(ours, hp.build_hag(edges, num_nodes=awkward.num_src)).eval()
        program = torch.export.export(bound, (x,), strict=strict)
        given: tuple[Tensor, ...] = (x,)
    else:
        given = (x, edges)
        program = torch.export.export(ours, given, strict=strict)
    for each in (program, program.run_decompositions()):
        torch.testing.assert_close(each.module()(*given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("accelerated", ["before", "after"])
def test_to_hetero(accelerated: str) -> None:
    """PyG rewrites the model with torch.fx; its layers are accelerated then, or were before."""

    class Homogeneous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = pyg.SAGEConv((-1, -1), 8)
            self.second = pyg.GraphConv((8, 8), 3)

        def forward(self, x: Any, edge_index: Any) -> Any:
            return self.second(self.first(x, edge_index).relu(), edge_index)

    metadata = (["a", "b"], [("a", "to", "b"), ("b", "from", "a")])
    x = {"a": torch.randn(10, 6), "b": torch.randn(8, 5)}
    edges = {
        ("a", "to", "b"): torch.stack([torch.randint(10, (30,)), torch.randint(8, (30,))]),
        ("b", "from", "a"): torch.stack([torch.randint(8, (30,)), torch.randint(10, (30,))]),
    }
    stock = pyg.to_hetero(Homogeneous(), metadata)
    expected = stock(x, edges)
    if accelerated == "before":
        ours = pyg.to_hetero(accelerate(Homogeneous()), metadata)
    else:
        ours = accelerate(pyg.to_hetero(Homogeneous(), metadata))
    ours(x, edges)  # sizes are found in the first call
    ours.load_state_dict(stock.state_dict())
    for _ in range(3):
        for kind, y in ours(x, edges).items():
            torch.testing.assert_close(y, stock(x, edges)[kind])
    assert {*expected} == {*x}


OTHERS: dict[str, Callable[[nn.Module, tuple[Any, ...]], Any]] = {
    "quantize_dynamic": lambda model, given: torch.ao.quantization.quantize_dynamic(
        model, {nn.Linear}, dtype=torch.qint8
    )(*given),
    "package": lambda model, given: packaged(model)(*given),
    "make_fx": lambda model, given: torch.fx.experimental.proxy_tensor.make_fx(model)(*given)(
        *given
    ),
    "symbolic_trace": lambda model, given: torch.fx.symbolic_trace(model)(*given),
    "functional_call": lambda model, given: torch.func.functional_call(
        model, dict(model.named_parameters()), given
    ),
    "swa": lambda model, given: torch.optim.swa_utils.AveragedModel(model)(*given),
    "share_memory": lambda model, given: model.share_memory()(*given),
    "to_empty": lambda model, given: (
        copy.deepcopy(model).to_empty(device="cpu").load_state_dict(model.state_dict())
    ),
    "weight_norm": lambda model, given: (
        torch.nn.utils.parametrizations.weight_norm(model.first.lin),
        model(*given),
    )[1],
}


def packaged(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    with torch.package.PackageExporter(file) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", model)
    file.seek(0)
    return torch.package.PackageImporter(file).load_pickle("model", "model.pkl")


@pytest.mark.parametrize("name", OTHERS)
def test_other_tools(name: str, awkward: Graph) -> None:
    """What works with stock works, and what does not raises the same."""
    given = (torch.randn(awkward.num_src, WIDTH), awkward.edge_index)
    stock = Model().eval()
    ours = known(stock, *given)
    try:
        expected = OTHERS[name](stock, given)
    except Exception as error:
        with pytest.raises(type(error)):
            OTHERS[name](ours, given)
        return
    for _ in range(2):
        found = OTHERS[name](copy.deepcopy(ours), given)
        if isinstance(expected, Tensor):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
