"""`model.parallel`: how a model that runs by a plan works together with the other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from hag_plugin.arguments import brief, whole
from hag_plugin.hag.graph import MAX_NODES, check_edge_index
from hag_plugin.limits import limits
from hag_plugin.parallel.execution.executors.registry import OperationExecutor, executor_of
from hag_plugin.parallel.execution.graphs.local_graphs import RankGraphs
from hag_plugin.parallel.execution.graphs.stored_graphs import SETUP, Neighbourhood, StoredGraphs
from hag_plugin.parallel.execution.parameters import Parameters
from hag_plugin.parallel.execution.runner import NO_COPY, Prepared, Runner, stand_in
from hag_plugin.parallel.execution.share import (
    Part,
    Share,
    by_graph,
    check_alike,
    has_nodes,
    moved,
    sliced,
)
from hag_plugin.parallel.execution.site import Site, World
from hag_plugin.parallel.graphs.stats import owners
from hag_plugin.parallel.graphs.store.partitioned_data import PartitionedData
from hag_plugin.parallel.layouts import ROWS, Layout, Split, shares
from hag_plugin.parallel.model.inputs import (
    ModelCall,
    features_of,
    of_types,
    plain,
    values_of,
    with_features,
)
from hag_plugin.parallel.model.opgraph import OpGraph
from hag_plugin.parallel.model.trace import Recorded, record
from hag_plugin.parallel.ranks.comm import Group, Sent
from hag_plugin.parallel.ranks.transfer import (
    fan_out,
    fetch_rows,
    replicate_rows,
    reshard,
    sum_parts,
)
from hag_plugin.parallel.search.plan import Plan
from hag_plugin.parallel.strategies.convolution import RowsCover
from hag_plugin.parallel.strategies.registry import parts_read
from hag_plugin.recall import Known
from hag_plugin.saved import set_module

TRIES = 100  # of drawing pairs without an edge


@set_module("hag_plugin.parallel")
class Parallel:
    """How a model works together with the other ranks: `model.parallel`.

    Attributes:
        data: this rank's share of the data the model was set up with: labels, masks and what else
            there is a row of for each node, of the nodes whose outputs this rank has.
        plan: what is run.
        group: all ranks.
        step: forward passes in training so far, for the masks of dropout. Set it when training
            goes on from a checkpoint.
    """

    data: Share

    def __init__(
        self,
        model: Module,
        pristine: Module,
        parameters: Parameters,
        plan: Plan,
        part: Part | None,
        call: ModelCall | None,
        group: Group,
    ) -> None:
        self.plan, self.group, self.step = plan, group, 0
        self._model, self._pristine, self._parameters = model, pristine, parameters
        self._part, self._call = part, call or plain
        self._seed = group.broadcast(torch.initial_seed())
        self._runner: Runner | None = None
        self._edges: Known | None = None  # of `negatives`, whose keys are `_keys`
        self._between = ("", "")
        self._keys = torch.empty(0, dtype=torch.int64)
        self._drawn = (0, -1)  # its step, and how often it was called in it

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(NO_COPY)

    # Running ---------------------------------------------------------------------------------

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward: of a share, by default `data`."""
        share = args[0] if args else self.data
        if len(args) > 1 or kwargs or not isinstance(share, Share):
            raise TypeError(
                "the features and edges of a parallel model are laid out once: call model(), or "
                "model(share) with what model.parallel.share(data) returned"
            )
        assert self._runner is not None  # set up with the first share
        self.step += self._model.training
        share.prepared.world.step = self.step
        return self._runner.run(share.prepared)

    @property
    def sent(self) -> Sent:
        """Bytes that this rank sent, by phase."""
        return self.group.sent

    # Data ------------------------------------------------------------------------------------

    def share(self, data: Any) -> Share:
        """What this rank has of other data than the model was set up with, a batch of graphs say.

        Args:
            data: as for `parallelize`, the same on every rank. A PyG `Batch` is cut between
                graphs.

        Raises:
            ValueError: the plan is for another model, or a rank has other data.
        """
        check_alike(data, self.group)
        with self.group.together("laying out the data"):
            part = self._part if getattr(data, "ptr", None) is None else by_graph(data)
            recorded = record(
                self._pristine, data, hag=False, part=part, counted=False, call=self._call
            )
        world, executors = self._executors(data, recorded, part)
        return self._shared(data, recorded, world, executors)

    def set_up(self, data: Any, recorded: Recorded) -> None:
        """Lays out `data`, and splits the weights as the plan says; `parallelize` does it once.

        Args:
            data: that was planned for.
            recorded: the model's operations on it.
        """
        world, executors = self._executors(data, recorded, self._part)
        self._place(executors)
        self._runner = Runner(self._model, self._call, recorded.wholes)
        self.data = self._shared(data, recorded, world, executors)

    def _executors(
        self, data: Any, recorded: Recorded, part: Part | None
    ) -> tuple[World, list[OperationExecutor | None]]:
        graphs = self._met(data, recorded) if isinstance(data, PartitionedData) else {}
        with self.group.together("laying out the data"):
            found = self._made(recorded, part, graphs, self._is_mapped(data))
        for each in found[0].graphs.values():
            each.forget()  # executors have what they run on
        return found

    def _met(self, data: PartitionedData, recorded: Recorded) -> dict[str, RankGraphs]:
        """The graphs of a store, as the ranks tell each other of them."""
        with self.group.together("opening the store"):
            if data.rank != self.group.rank or data.ranks != self.group.size:
                raise ValueError(
                    f"data is part {data.rank} of {data.ranks} on rank {self.group.rank} of "
                    f"{self.group.size}; expected its own part"
                )
        group, configs = self.group, self.plan.configs
        covers = any(config.strategy == RowsCover.name for config in configs.values())
        ops = [op for op in recorded.graph.ops if op.graph and op.name in configs]
        merged = {1, *(parts_read(op, configs[op.name], group.size) for op in ops)}
        known = {}
        for count in sorted(merged):
            peers = group.strided(count) if count < group.size else group.neighbours(1)
            with group.together("opening the store"):
                block = data.block(count)
            known[count] = Neighbourhood.of(block, group, peers, covers and count == 1)
        assert recorded.stored is not None  # it is of a store
        given = recorded.stored.of_edges
        return {
            key: StoredGraphs(known, edges.self_loops, given, edges.edge_type)
            for key, edges in recorded.edges.items()
            if key in recorded.graph.graphs
        }

    def _is_mapped(self, data: Any) -> bool:
        """Whether the features stay in their file."""
        if not isinstance(data, PartitionedData) or "x" not in data.names:
            return False
        return self.group.device.type == "cpu" and data.x.nbytes > limits.mapped_bytes

    def _made(
        self, recorded: Recorded, part: Part | None, graphs: Mapping[str, RankGraphs], mapped: bool
    ) -> tuple[World, list[OperationExecutor | None]]:
        graph, group = recorded.graph, self.group
        nodes = {of: graph.rows(group.size, of) for of in graph.types}
        for each in graphs.values():
            nodes[""] = each.rows
        if not nodes:
            nodes[""] = np.bincount(owners(part, group.size, graph.nodes), minlength=group.size)
        dtype = next((p.dtype for p in self._pristine.parameters()), torch.float32)
        world = World(
            group, nodes, recorded.edges, self._parameters, group.device, dtype, {**graphs},
            mapped=mapped, seed=self._seed,
        )  # fmt: skip
        configs = self.plan.configs
        executors: list[OperationExecutor | None] = []
        for i, (op, met) in enumerate(zip(graph.ops, recorded.met, strict=True)):
            if op.name not in configs or op.kind != self.plan.layer(op.name).kind:
                raise ValueError(
                    f"operation {op.name!r} ({op.kind}) is not in the plan, which has "
                    f"{list(configs)}"
                )
            if op.kind in ("input", "loss"):
                executors.append(None)
                continue
            module = self._model.get_submodule(met.path) if met.leaf else None
            fixed = all(graph.ops[j].kind == "input" for j in op.inputs)
            site = Site(op, i, configs[op.name], world, module, met.names, met.call, fixed)
            executors.append(executor_of(site))
        return world, executors

    def _place(self, executors: list[OperationExecutor | None]) -> None:
        """Splits the weights as the executors want them."""
        splits: dict[str, Split] = {}
        with self.group.together("splitting the weights"):
            for executor in executors:
                if executor is None:
                    continue
                for role, split in executor.placements().items():
                    splits[executor.site.names[role]] = split
            self._parameters.place(splits)

    def _shared(
        self,
        data: Any,
        recorded: Recorded,
        world: World,
        executors: list[OperationExecutor | None],
    ) -> Share:
        output = self.plan.configs[recorded.graph.ops[-1].name].source
        wanted = _layouts(recorded.graph, executors, output)
        if isinstance(data, PartitionedData):
            return self._shared_of_part(data, recorded, world, executors, wanted)
        with self.group.together("laying out the features"):
            features = {
                index: {
                    layout: sliced(x, layout, world.nodes[of], self.group)
                    for layout in wanted[index]
                }
                for index, (of, x) in enumerate(features_of(data).items())
            }
            given = moved(data, world.device)
            prepared = self._prepared(given, recorded, world, executors, features)
            return self._values(data, recorded, prepared)

    def _shared_of_part(
        self,
        data: PartitionedData,
        recorded: Recorded,
        world: World,
        executors: list[OperationExecutor | None],
        wanted: dict[int, list[Layout]],
    ) -> Share:
        """Of a part of a store, whose rows ranks send each other where others are wanted."""
        graph, nodes, group = recorded.graph, world.nodes[""], self.group.counted_as(SETUP)
        with self.group.together("laying out the features"):
            x = data.x.detach() if wanted[0] else None
            if x is not None and not world.mapped:
                x = x.to(world.device, copy=True)
        features: dict[int, dict[Layout, Tensor]] = {0: {}}
        for layout in wanted[0]:
            assert x is not None  # it is wanted
            if group.size == 1:  # it has all in any layout
                features[0][layout] = x
                continue
            with torch.no_grad():
                features[0][layout] = reshard(x, ROWS, layout, nodes, x.shape[1], group)
        prepared = self._prepared(recorded.stored, recorded, world, executors, features)
        values = {name: getattr(data, name) for name in (*data.names, "nodes") if name != "x"}
        own = slice(data.first, data.first + data.num_nodes)
        if not _is_split(prepared):
            values = {k: torch.cat(group.collect(v)) for k, v in values.items()}
            own = slice(0, graph.ops[-1].rows or graph.nodes)
        return self._cut(values, own, graph.nodes, prepared, None)

    def _prepared(
        self,
        data: Any,
        recorded: Recorded,
        world: World,
        executors: list[OperationExecutor | None],
        features: dict[int, dict[Layout, Tensor]],
    ) -> Prepared:
        graph, shapes = recorded.graph, [met.shape for met in recorded.met]
        nothing = torch.empty(0, dtype=world.dtype, device=world.device)  # features are learned
        tokens = {
            index: stand_in(shapes[index], next(iter(found.values()), nothing), index, None)
            for index, found in features.items()
        }
        named = {graph.ops[index].of: token for index, token in tokens.items()}
        given, output = with_features(data, named), self.plan.configs[graph.ops[-1].name].source
        return Prepared(world, graph.ops, shapes, executors, features, output, tokens, given)

    def _values(self, data: Any, recorded: Recorded, prepared: Prepared) -> Share:
        """What this rank has of labels, masks and the like."""
        graph, split = recorded.graph, _is_split(prepared)
        if not graph.types:
            values = {k: v for k, v in values_of(data).items() if k not in ("x", "edge_index")}
            own = slice(0, graph.ops[-1].rows or graph.nodes)
            return self._cut(values, own, graph.nodes, prepared, "" if split else None)
        known = of_types(data)
        share = Share(known[""], slice(0, 0), prepared)
        for of, nodes in graph.types.items():
            cut = of if split else None
            share._types[of] = self._cut(known[of], slice(0, nodes), nodes, prepared, cut)
        return share

    def _cut(
        self, values: dict[str, Any], own: slice, nodes: int, prepared: Prepared, of: str | None
    ) -> Share:
        """What this rank has of some nodes' values; `of`, their type, unless it has all of them."""
        world = prepared.world
        if of is not None:
            own = shares(ROWS, world.nodes[of], 1, self.group.rank)[0]
            cut = [k for k, v in values.items() if has_nodes(k, v, nodes)]
            values |= {k: values[k][own] for k in cut}
        kept = {k: v.to(world.device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Share(kept, own, prepared)

    # Losses and metrics ----------------------------------------------------------------------

    def mean(
        self, values: Tensor, weights: Tensor | None = None, *, apart: bool | None = None
    ) -> Tensor:
        """The mean of all ranks' values, with the gradients that one process would have.

        Args:
            values: a loss a row, of any shape; may be empty on some ranks.
            weights: of the same shape, constants: `sum(weights * values) / sum(weights)`. A mask,
                or the weights of classes: `mean(cross_entropy(out, y, reduction="none"), w[y])` is
                `cross_entropy(out, y, weight=w)`.
            apart: whether each rank has values of its own, as of pairs of nodes; by default, where
                it has rows of the output of its own (`split`).

        Raises:
            ValueError: the weights have another shape.
        """
        if weights is None:
            count = torch.tensor([values.numel()], device=values.device)
        elif weights.shape != values.shape:
            raise ValueError(
                f"weights has shape {list(weights.shape)}; expected {list(values.shape)}, that of "
                "the values"
            )
        else:
            count = weights.detach().sum(dtype=torch.float64).view(1)
            values = values * weights.detach()
        total = values.sum().view(1)
        if self.split if apart is None else apart:
            loss = self.group.counted_as("loss")
            count, total = loss.all_reduce(count, "loss"), sum_parts(total, loss)
        return total[0] / count[0].to(total.dtype)

    def total(self, value: Tensor | float, *, apart: bool | None = None) -> Any:
        """The sum of a number over ranks: of correct answers, say. Counted once where all ranks
        have all rows, unless they count `apart`, as in `mean`.
        """
        if not (self.split if apart is None else apart):
            return value
        tensor = torch.as_tensor(value, device=self.group.device).detach()
        if tensor.dtype in (torch.bool, torch.int32):
            tensor = tensor.long()
        summed = self.group.all_reduce(tensor, "loss")
        return summed if isinstance(value, Tensor) else summed.item()

    def gather(self, values: Tensor, of: str = "") -> Tensor:
        """All rows of the model's output, or of what was made from its rows, on every rank.

        `of`: the type of nodes that they belong to, where there are several.
        """
        nodes = self._nodes(of)
        if not self.split:
            return values.detach()
        flat = values.detach()
        flat = flat.flatten(1) if flat.dim() > 1 else flat.view(-1, 1)
        whole = replicate_rows(flat, nodes, self.group.counted_as("gather"))
        return whole.view(-1, *values.shape[1:])

    # Pairs of nodes --------------------------------------------------------------------------

    def rows(self, values: Tensor, index: Tensor, of: str = "") -> Tensor:
        """Rows of any nodes, from the ranks that have them, with gradients: to decode pairs, say.

        Every rank calls it, each with nodes of its own; a loss of what comes of them is taken with
        `mean(..., apart=True)`.

        Args:
            values: floating `[n, ...]`, the model's output on this rank, or what was made from its
                rows.
            index: integer `[k]`, nodes as the data numbers them; k may be 0, and differ.
            of: their type, where there are several.

        Returns:
            `[k, ...]`.

        Raises:
            TypeError: `index` is no tensor of integers.
            ValueError: `index` has another shape or names no node, on some rank; or there is not a
                row of `values` for each row of the output.

        Example::

            h = model()
            source, target = model.parallel.rows(h, pairs.flatten()).view(2, -1, h.shape[1])
            losses = F.binary_cross_entropy_with_logits((source * target).sum(-1), labels,
                                                        reduction="none")
            model.parallel.mean(losses, apart=True).backward()
        """
        with self.group.together("looking for rows"):
            nodes = self._nodes(of)
            own = self.data[of].rows if of else self.data.rows
            _check_index(index, int(nodes.sum()))
            if len(values) != own.stop - own.start:
                raise ValueError(
                    f"values has {len(values)} rows; expected {own.stop - own.start}, those of "
                    "this rank's output"
                )
        index = index.to(values.device, torch.int64)
        flat = values.flatten(1) if values.dim() > 1 else values.view(-1, 1)
        if self.split:
            found = fetch_rows(flat, index, nodes, self.group)
        else:
            found = fan_out(flat, self.group).index_select(0, index)
        return found.view(-1, *values.shape[1:])

    def negatives(self, edges: Tensor, count: int, between: tuple[str, str] = ("", "")) -> Tensor:
        """Pairs of nodes without an edge, each rank its own: they go by seed, step and rank.

        Args:
            edges: integer `[2, E]`, those to leave out; they are sorted once as long as the same
                tensor is given, unchanged.
            count: how many.
            between: types of sources and targets, where there are several.

        Returns:
            int64 `[2, count]`, sources and targets, no node and itself; a pair may occur twice.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: `edges` has another shape; the graph has next to no pairs without an edge.
        """
        count = whole("count", count, 0, MAX_NODES)
        check_edge_index(edges)
        sources, nodes = (int(self._nodes(of).sum()) for of in between)
        again = self._edges is not None and self._edges.holds((edges,))
        if not again or self._between != between:
            self._between = between
            keys = edges[0].cpu().long() * nodes + edges[1].cpu()
            self._edges, self._keys = Known.of((edges,)), keys.sort().values
        self._drawn = (self.step, self._drawn[1] + 1 if self._drawn[0] == self.step else 0)
        key = hash((self._seed, self.group.rank, *self._drawn)) % 2**63
        draw, known = torch.Generator().manual_seed(key), self._keys
        found, missing = [torch.empty(0, dtype=torch.int64)], count
        for _ in range(TRIES):
            keys = torch.randint(max(sources * nodes, 1), (2 * missing,), generator=draw)
            place = torch.searchsorted(known, keys).clamp(max=max(len(known) - 1, 0))
            free = keys // nodes != keys % nodes
            if between[0] != between[1]:
                free[:] = True
            if len(known):
                free &= known[place] != keys
            found.append(keys[free][:missing])
            missing -= len(found[-1])
            if not missing:
                break
        else:
            raise ValueError(
                f"{missing} of {count} pairs without an edge were not found; expected a graph with "
                f"more of them than one in {TRIES}"
            )
        keys = torch.cat(found)
        return torch.stack([keys // nodes, keys % nodes]).to(self.group.device)

    def concatenate(self, values: Tensor) -> Tensor:
        """All ranks' values one after the other, on every rank, without gradients: for metrics.

        Args:
            values: `[k, ...]`; k may differ from rank to rank, and be 0.

        Returns:
            `[sum of k, ...]`.
        """
        flat = values.detach()
        flat = flat.flatten(1) if flat.dim() > 1 else flat.view(-1, 1)
        sizes = self.group.collect(len(flat))
        joined = replicate_rows(flat, sizes, self.group.counted_as("gather"))
        return joined.view(-1, *values.shape[1:])

    def _nodes(self, of: str) -> np.ndarray:
        """Nodes of a type that each rank has.

        Raises:
            ValueError: there are none of that type.
        """
        nodes = self.data.prepared.world.nodes
        if of not in nodes:
            raise ValueError(f"nodes are of no type {of!r}; expected one of {list(nodes)}")
        return nodes[of]

    @property
    def split(self) -> bool:
        """Whether each rank has some rows of the output, rather than all."""
        return self.data.prepared.output == ROWS


def _layouts(
    graph: OpGraph, executors: Sequence[OperationExecutor | None], output: Layout
) -> dict[int, list[Layout]]:
    """How the features are to lie for the operations that take them, in one order on all ranks."""
    found: dict[int, set[Layout]] = {
        index: {output} if index in graph.ops[-1].inputs else set()
        for index, op in enumerate(graph.ops)
        if op.kind == "input"
    }
    for executor in executors:
        if executor is not None:
            for index in found.keys() & {*executor.site.op.inputs}:
                found[index].add(executor.site.config.source)
    return {index: sorted(layouts, key=str) for index, layouts in found.items()}


def _is_split(prepared: Prepared) -> bool:
    """Whether ranks have rows of the output, one a node, of their own."""
    return prepared.ops[-1].rows is None and prepared.output == ROWS


def _check_index(index: Any, nodes: int) -> None:
    """Raises TypeError or ValueError unless these are nodes."""
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(index, Tensor) or index.dtype not in integers:
        raise TypeError(f"index is {brief(index)}; expected a tensor of integers")
    if index.dim() != 1:
        raise ValueError(f"index has shape {list(index.shape)}; expected [k], nodes")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < nodes:
        raise ValueError(
            f"index has {int(index.min())} to {int(index.max())}; expected nodes, 0 to {nodes - 1}"
        )
