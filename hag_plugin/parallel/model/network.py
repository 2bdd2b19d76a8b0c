"""The operations of a plain torch model: a convolutional, recurrent or attention network.

`torch.export` follows the model's forward; what it calls are operations of torch, `aten.conv2d`
say. Operations on what every rank has (inputs, buffers, constants) are done on every rank and are
not planned; all others are.
"""

from __future__ import annotations

import inspect
import operator
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import Module
from torch.utils import _pytree as pytree

from hag_plugin.arguments import brief
from hag_plugin.parallel.model.layers import UnknownLayerError
from hag_plugin.saved import set_module

Shape = tuple[int, ...]
# Operations whose result shares memory with what they were given.
VIEWS = (
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t",
    "select", "slice", "expand", "chunk", "split", "split_with_sizes", "unbind", "narrow", "alias",
    "contiguous", "detach",
)  # fmt: skip
_EXPORTING = threading.Lock()  # torch.export has state of the process
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation that is planned.

    Attributes:
        name: of the module that calls it, with a number where it calls several.
        kind: what torch calls it, without overload: "conv2d".
        node: as `torch.export` gives it.
        function: what is called; of an operation in place, its twin that is not.
        inputs: tensors that it reads, in the order of its arguments; one may occur twice.
        outputs: shapes of the tensors that it makes.
    """

    name: str
    kind: str
    node: fx.Node
    function: Any
    inputs: tuple[fx.Node, ...]
    outputs: tuple[Shape, ...]

    @property
    def shapes(self) -> list[Shape]:
        """Of the inputs."""
        return [tuple(of.meta["val"].shape) for of in self.inputs]

    def argument(self, place: int, name: str, default: Any) -> Any:
        """An argument by its place or name; the default where it is not given."""
        if len(self.node.args) > place:
            return self.node.args[place]
        return self.node.kwargs.get(name, default)


@set_module("hag_plugin.parallel")
@dataclass(frozen=True, eq=False)
class Network:
    """The operations of a plain torch model, and how they hang together.

    Attributes:
        model: name of its class.
        operations: in order.
        nodes: all of the graph, in order.
        parameters: names in the model, by node.
        buffers: likewise.
        constants: values of other tensors that the model holds.
        inputs: nodes of the model's inputs, in the order in which they are given.
        everywhere: nodes whose values every rank has.
        output: what the model returns, with nodes in place of tensors.
    """

    model: str
    operations: tuple[Operation, ...]
    nodes: tuple[fx.Node, ...]
    parameters: dict[fx.Node, str]
    buffers: dict[fx.Node, str]
    constants: dict[fx.Node, Tensor]
    inputs: tuple[fx.Node, ...]
    everywhere: frozenset[fx.Node]
    output: Any

    @property
    def outputs(self) -> list[fx.Node]:
        """Tensors that the model returns and that ranks share out; each once."""
        leaves = pytree.tree_leaves(self.output)
        found = {n: None for n in leaves if isinstance(n, fx.Node) and n not in self.everywhere}
        return list(found)


def given(inputs: Any) -> tuple[Any, ...] | None:
    """The arguments of a plain model; None where the data is that of a graph.

    Example:
        >>> given(torch.ones(2)), given({"x": 1})
        ((tensor([1., 1.]),), None)
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, (tuple, list)) and inputs and all(isinstance(t, Tensor) for t in inputs):
        return tuple(inputs)
    return None


def check_without_graph(**arguments: tuple[Any, Any]) -> None:
    """Raises ValueError where an argument that is of models on a graph has not its default."""
    for name, (value, usual) in arguments.items():
        if value is not usual and value != usual:
            raise ValueError(
                f"{name}= is of a model on a graph; {name} is {brief(value)}, expected none for a "
                "model whose data is tensors"
            )


def source(node: fx.Node) -> tuple[fx.Node, int]:
    """The operation that made a value, and which of its outputs that is."""
    if node.target is operator.getitem:
        return node.args[0], int(node.args[1])  # type: ignore[return-value, arg-type]
    return node, 0


def follow(model: Module, inputs: tuple[Any, ...]) -> Network:
    """The operations of a model, called with these inputs.

    Raises:
        TypeError: the model cannot be called with so many.
        UnknownLayerError: the model cannot be followed, or draws random numbers in a way that is
            not the same on all ranks; names what.
    """
    if any(t.requires_grad for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)):
        raise ValueError(
            "an input requires a gradient; expected inputs without: a plan gives gradients of "
            "parameters only"
        )
    name = type(model).__name__
    try:
        inspect.signature(model.forward).bind(*inputs)
    except TypeError as e:
        raise TypeError(
            f"data is {len(inputs)} tensors, with which {name}.forward cannot be called: {e}"
        ) from None
    try:
        with _EXPORTING, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of lists of weights, which LSTMs keep
            program = torch.export.export(model, inputs, strict=False)
    except Exception as e:
        said = str(e).strip().partition("\n")[0]
        raise UnknownLayerError(
            f"{name}.forward cannot be followed by torch.export, called with data: "
            f"{type(e).__name__}: {said}"
        ) from e
    signature = program.graph_signature
    nodes = tuple(program.graph.nodes)
    places = {n.name: n for n in nodes if n.op == "placeholder"}
    first = {id(p): k for k, p in model.named_parameters()}  # of each that is shared, one name
    names = {k: first[id(p)] for k, p in model.named_parameters(remove_duplicate=False)}
    parameters = {places[k]: names[v] for k, v in signature.inputs_to_parameters.items()}
    buffers = {places[k]: v for k, v in signature.inputs_to_buffers.items()}
    held = signature.inputs_to_lifted_tensor_constants
    constants = {places[k]: program.constants[v] for k, v in held.items()}
    users = tuple(places[str(k)] for k in signature.user_inputs if str(k) in places)
    operations, everywhere, changed = _operations(nodes, parameters)
    [last] = [n for n in nodes if n.op == "output"]
    leaves = [_current(n, changed) if isinstance(n, fx.Node) else n for n in last.args[0]]
    scalars = [v for k, v in parameters.items() if k.users and not k.meta["val"].dim()]
    if scalars:
        raise UnknownLayerError(
            f"parameter {scalars[0]!r} has no dimension; expected shape [1], of which a rank can "
            "keep a block"
        )
    returned = [parameters[n] for n in leaves if n in parameters]
    if returned:
        raise UnknownLayerError(f"the model returns its parameter {returned[0]!r}; expected a copy")
    operations = _used(operations, [n for n in leaves if isinstance(n, fx.Node)])
    return Network(
        name, operations, nodes, parameters, buffers, constants, users, frozenset(everywhere),
        pytree.tree_unflatten(leaves, program.call_spec.out_spec),
    )  # fmt: skip


def followed(model: Module, inputs: tuple[Any, ...]) -> Network:
    """The operations of a model in training, whose mode is left as it is."""
    modes = {module: module.training for module in model.modules()}
    try:
        if not model.training:
            model.train()
        return follow(model, inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _operations(
    nodes: Sequence[fx.Node], parameters: dict[fx.Node, str]
) -> tuple[tuple[Operation, ...], set[fx.Node], dict[fx.Node, fx.Node]]:
    everywhere: set[fx.Node] = set()
    changed: dict[fx.Node, fx.Node] = {}  # by an operation in place
    counted: dict[str, int] = {}
    found = []
    for node in nodes:
        if node.op == "placeholder":
            if node not in parameters:
                everywhere.add(node)
            continue
        if node.op != "call_function":
            continue
        read = tuple(_current(n, changed) for n in tensors_of(node))
        if all(n in everywhere for n in read):
            _check(node, read, everywhere=True)
            everywhere.add(node)
            continue
        if node.target is operator.getitem:
            continue
        kind, function = _check(node, read, everywhere=False)
        if function is not node.target:
            changed[read[0]] = node
        path = path_of(node)
        label = f"{path}.{kind}" if path else kind
        counted[label] = counted.get(label, 0) + 1
        label = label if counted[label] == 1 else f"{label}_{counted[label]}"
        made = pytree.tree_leaves(node.meta["val"])
        found.append(
            Operation(label, kind, node, function, read, tuple(tuple(t.shape) for t in made))
        )
    return tuple(found), everywhere, changed


def _used(operations: Sequence[Operation], outputs: Sequence[fx.Node]) -> tuple[Operation, ...]:
    """Without those that nothing comes of."""
    wanted = {source(n)[0] for n in outputs}
    found = []
    for operation in reversed(operations):
        if operation.node in wanted or operation.kind == "batch_norm":  # which keeps statistics
            wanted |= {source(n)[0] for n in operation.inputs}
            found.append(operation)
    return tuple(reversed(found))


def path_of(node: fx.Node) -> str:
    """Of the module that calls an operation."""
    modules = [*node.meta.get("nn_module_stack", {}).values()]
    return str(modules[-1][0]) if modules else ""


def tensors_of(node: fx.Node) -> list[fx.Node]:
    """Tensors among the arguments of a node, in their order; one may occur twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _current(node: fx.Node, changed: dict[fx.Node, fx.Node]) -> fx.Node:
    while node in changed:
        node = changed[node]
    return node


def _check(node: fx.Node, read: Sequence[fx.Node], everywhere: bool) -> tuple[str, Any]:
    """The kind of an operation and what is called; refuses what is not the same on all ranks."""
    function: Any = node.target
    if function is operator.getitem:
        return "getitem", function
    if not isinstance(function, torch._ops.OpOverload):
        raise UnknownLayerError(f"{function} is no operation of torch; expected those alone")
    kind = function.overloadpacket.__name__
    where = path_of(node)
    random: bool = torch.Tag.nondeterministic_seeded in function.tags
    if kind in RECURRENT:
        given: Any = node.args
        random = given[4] > 1 and given[5] > 0 and given[6]  # layers, dropout, training
    if kind == "scaled_dot_product_attention":
        random = len(node.args) > 4 and float(node.args[4]) > 0  # type: ignore[arg-type]
    if random and kind not in ("dropout", "dropout_"):
        raise UnknownLayerError(
            f"{kind} in {where or 'the model'} draws random numbers; only dropout of its own "
            "(torch.nn.Dropout, F.dropout) is the same on all ranks. Set the dropout of attention "
            "and between layers of an LSTM to 0, or write it as a layer"
        )
    if kind == "instance_norm" and node.args[3] is not None:
        raise UnknownLayerError(
            f"{kind} in {where or 'the model'} keeps running statistics, which a plan does not "
            "follow; expected track_running_stats=False"
        )
    if everywhere or not kind.endswith("_"):
        return kind, function
    base = read[0]
    relatives = [base, source(base)[0], *base.users]
    viewed = [n for n in relatives if _kind(n) in VIEWS]
    if viewed or base.op == "placeholder":
        raise UnknownLayerError(
            f"{kind} in {where or 'the model'} changes a tensor that others see "
            f"({(viewed or [base])[0]}); expected {kind.rstrip('_')}, which does not"
        )
    packet = getattr(torch.ops.aten, kind.rstrip("_"))
    return kind.rstrip("_"), getattr(packet, function._overloadname)


def _kind(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else str(packet.__name__)
