"""Models of DGL layers under torch.jit, torch.onnx and other tools that look inside."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

dgl = pytest.importorskip("dgl", reason="DGL is not installed")
from dgl.nn.pytorch import GATConv, GATv2Conv, GraphConv, SAGEConv  # noqa: E402

from hag_plugin.dgl import ToHAG, accelerate, restore, to_plain  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about tracing and TorchScript
WIDTH = 6


class Model(nn.Module):
    """Two layers and a graph: only features go in."""

    def __init__(self, graph: Any) -> None:
        super().__init__()
        self.first = GraphConv(WIDTH, 8, allow_zero_in_degree=True)
        self.second = SAGEConv(8, 3, "mean")
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.graph, self.first(self.graph, x).relu())


class Attending(Model):
    """The same with attention."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.first = GATConv(WIDTH, 8, 1, allow_zero_in_degree=True)
        self.second = GATv2Conv(8, 3, 1, allow_zero_in_degree=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.graph, self.first(self.graph, x).flatten(1).relu())


@pytest.fixture(params=["ToHAG", "accelerate", "attention"])
def model(request: pytest.FixtureRequest, multigraph: Callable[..., Any]) -> Model:
    """By one way or the other on HAGs; or attending in one pass over the edges."""
    cls = Attending if request.param == "attention" else Model
    made = cls(multigraph()).eval()
    if request.param == "ToHAG":
        made.graph = ToHAG()(made.graph)
    else:
        accelerate(made)
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(57, WIDTH))
    return made


def stock_of(model: Model) -> Model:
    stock = restore(copy.deepcopy(model))
    stock.graph = to_plain(stock.graph)
    return stock


@pytest.mark.parametrize(
    "part",
    [
        lambda model: model,
        lambda model: model.first,
        lambda model: nn.ModuleList([model]),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
    ],
)
def test_script_names_restore(part: Callable[[Any], nn.Module], multigraph: Any) -> None:
    model = Model(multigraph())
    before = {name: {*vars(m)} for name, m in model.named_modules()}
    accelerate(model)
    with pytest.raises(RuntimeError, match=r"hag_plugin\.restore\(model\)"):
        torch.jit.script(part(model))
    restore(model)
    assert {name: {*vars(m)} for name, m in model.named_modules()} == before


def test_trace(model: Model) -> None:
    """The operators go into the trace: it runs wherever hag_plugin was imported."""
    traced = torch.jit.trace(model, (torch.randn(57, WIDTH),))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    stock = stock_of(model)
    for each in (traced, torch.jit.load(file)):
        results = []
        for run in (each, stock):
            x = torch.linspace(-1, 1, 57 * WIDTH).view(57, WIDTH).requires_grad_()
            y = run(x)
            y.square().sum().backward()
            results.append((y.detach(), x.grad))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_onnx_names_restore(model: Model) -> None:
    with pytest.raises(RuntimeError, match=r"hag_plugin\.restore\(model\)"):
        torch.onnx.export(model, (torch.randn(57, WIDTH),), io.BytesIO(), dynamo=False)
    if isinstance(model, Attending):
        return  # nor does ONNX have one for DGL's softmax over edges
    if importlib.util.find_spec("onnx") is None:  # as stock: nothing of ours stands in the way
        with pytest.raises(torch.onnx.errors.OnnxExporterError, match="onnx"):
            torch.onnx.export(
                stock_of(model), (torch.randn(57, WIDTH),), io.BytesIO(), dynamo=False
            )


def packaged(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    with torch.package.PackageExporter(file) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", model)
    file.seek(0)
    return torch.package.PackageImporter(file).load_pickle("model", "model.pkl")


OTHERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "quantize_dynamic": lambda model, x: torch.ao.quantization.quantize_dynamic(
        model, {nn.Linear}, dtype=torch.qint8
    )(x),
    "package": lambda model, x: packaged(model)(x),
    "export": lambda model, x: torch.export.export(model, (x,)).module()(x),
    "symbolic_trace": lambda model, x: torch.fx.symbolic_trace(model)(x),
    "functional_call": lambda model, x: torch.func.functional_call(
        model, dict(model.named_parameters()), (x,)
    ),
    "swa": lambda model, x: torch.optim.swa_utils.AveragedModel(model)(x),
    "compile": lambda model, x: torch.compile(model, backend="eager")(x),
}


@pytest.mark.mostly_slow("accelerate-*", "attention-*", "ToHAG-export", "make_fx")
@pytest.mark.parametrize("name", OTHERS)
def test_other_tools(name: str, model: Model) -> None:
    """What works with stock works, and what does not raises the same."""
    x, stock = torch.randn(57, WIDTH), stock_of(model)
    try:
        expected = OTHERS[name](stock, x)
    except Exception as error:
        with pytest.raises(type(error)):
            OTHERS[name](model, x)
        return
    for _ in range(2):
        found = OTHERS[name](copy.deepcopy(model), x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
