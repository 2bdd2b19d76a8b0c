"""The derivatives of attention, composed of `head_dot`, `head_sum` and what torch has for `[E, H]`.

Each piece has derivatives of any order, and so has what is made of them: this is what tangents, and
gradients that are derived again, are made of. They are right, not fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from hag_plugin.ops.registration import Graph, call

SCORES = ("given", "sum", "vector", "dot")
NORMALISATIONS = ("softmax", "tanh", "none")
TINY = 1e-16  # what torch_geometric.utils.softmax adds to its sums


class Tensors(NamedTuple):
    """The tensors of a call of attention, or their tangents, or the gradients by them."""

    value: Tensor | None = None
    key: Tensor | None = None
    query: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    edges: Tensor | None = None
    edge_query: Tensor | None = None
    projection: Tensor | None = None
    mask: Tensor | None = None
    order: Tensor | None = None


@dataclass(frozen=True)
class Form:
    """What a call of attention computes, besides its tensors.

    Attributes:
        num_dst: targets of the graph.
        score: one of `SCORES`.
        slope: of the leaky ReLU.
        normalise: one of `NORMALISATIONS`.
        loops: as `check_self_loops` gives it.
    """

    num_dst: int
    score: str
    slope: float
    normalise: str
    loops: str

    @property
    def others(self) -> tuple[Any, ...]:
        """As operators take it after the tensors and the graph."""
        return self.num_dst, self.score, self.slope, self.normalise, self.loops


class Pieces:
    """A call of attention, edge by edge.

    Attributes:
        z: "vector": what the leaky ReLU is applied to, `[E, H, K]`.
        s: the scores before their leaky ReLU, `[E, H]`.
        p: what is made of them.
        w: `p` with the mask.
    """

    def __init__(self, graph: Graph, form: Form, tensors: Tensors, peak: Tensor | None) -> None:
        """`peak` is the largest score of each target `[N_dst, H]`, a constant."""
        self.graph, self.form, self.given = graph, form, tensors
        assert tensors.value is not None
        self.value = tensors.value
        self.z: Tensor | None = None
        self.s = self._scores()
        self.p = self._normalised(peak)
        self.w = self.p if tensors.mask is None else self.p * tensors.mask

    # The linear operators --------------------------------------------------------------------

    def dot(self, a: Any, b: Any) -> Tensor:
        """`<a_j, b_i>` of each edge and head, `[E, H]`."""
        y: Tensor = call("head_dot", self.graph, (a, b, self.given.order), self.form.loops)
        return y

    def sum(self, x: Any, weight: Tensor, transposed: bool = False) -> Tensor:
        """The sum over the edges of each target, or source: `[N, H, C]`."""
        rows = self.value.shape[0] if transposed else self.form.num_dst
        how = rows, self.form.loops, transposed
        y: Tensor = call("head_sum", self.graph, (x, weight, self.given.order), *how)
        return y

    def spread(self, source: Tensor | None, target: Tensor | None) -> Tensor:
        """`source_j + target_i` of each edge, of `[N, W]` each: `[E, W]`."""
        if source is None:
            assert target is not None
            return self.dot(self._ones(target, False), target.unsqueeze(-1))
        if target is None:
            return self.dot(source.unsqueeze(-1), self._ones(source, True))
        a = torch.stack([source, torch.ones_like(source)], -1)
        return self.dot(a, torch.stack([torch.ones_like(target), target], -1))

    def gathered(self, weight: Tensor, transposed: bool = False) -> Tensor:
        """The sum over the edges of each target, or source, of `[E, W]`: `[N, W]`."""
        return self.sum(self._ones(weight, transposed), weight, transposed).squeeze(-1)

    def _ones(self, like: Tensor, of_targets: bool) -> Tensor:
        rows = self.form.num_dst if of_targets else self.value.shape[0]
        return self.value.new_ones(rows, like.shape[1], 1)

    # What is computed -------------------------------------------------------------------------

    def _scores(self) -> Tensor:
        given, score = self.given, self.form.score
        terms: list[Tensor] = [] if given.bias is None else [given.bias]
        if score == "vector":
            assert given.weight is not None
            self.z = self._vectors(given.key, given.query, given.edges, given.projection)
            terms.append((leaky_relu(self.z, self.form.slope) * given.weight).sum(-1))
        elif score == "sum" and not (given.key is None and given.query is None):
            terms.append(self.spread(given.key, given.query))
        elif score == "dot":
            terms.append(self.dot(given.key, given.query))
            if given.edge_query is not None:
                terms.append(self._asked(given.edge_query, given.edges))
        return sum(terms[1:], terms[0])

    def _vectors(
        self, key: Tensor | None, query: Tensor | None, edges: Tensor | None, by: Tensor | None
    ) -> Tensor:
        """`key_j + query_i + edges @ by` of each edge, `[E, H, K]`; one of the first is there."""
        z = self.spread(*(t if t is None else _flat(t) for t in (key, query)))
        if edges is not None:
            z = z + (edges if by is None else edges @ by)
        assert self.given.weight is not None
        return z.reshape(z.shape[0], *self.given.weight.shape)

    def _asked(self, edge_query: Tensor, edges: Tensor | None) -> Tensor:
        """`<edge_query_i, edges_e>`, `[E, H]`."""
        assert edges is not None
        return (self._of_target(edge_query) * edges.unsqueeze(1)).sum(-1)

    def _of_target(self, rows: Tensor) -> Tensor:
        """`[N_dst, H, D]` of each edge's target, `[E, H, D]`."""
        each = self.spread(None, _flat(rows))
        return each.reshape(each.shape[0], *rows.shape[1:])

    def _sent(self, weight: Tensor, edges: Any) -> Tensor:
        """The sum over the edges of each target of `weight_eh * edges_e`, `[N_dst, H, D]`."""
        each = weight.unsqueeze(-1) * edges.unsqueeze(1)
        return self.gathered(_flat(each)).reshape(self.form.num_dst, *each.shape[1:])

    def _normalised(self, peak: Tensor | None) -> Tensor:
        form, s = self.form, self.s
        if form.score != "vector" and form.slope != 1.0:
            s = leaky_relu(s, form.slope)
        if form.normalise == "tanh":
            return s.tanh()
        if form.normalise == "none":
            return s
        e = (s - self.spread(None, peak)).exp()
        return e / (self.spread(None, self.gathered(e)) + TINY)

    # What is derived --------------------------------------------------------------------------

    def by_score(self, t: Tensor) -> Tensor:
        """The symmetric matrix of `p` by `s` of each target's edges, times `t`, `[E, H]`."""
        if self.form.normalise == "softmax":
            t = self.p * (t - self.spread(None, self.gathered(self.p * t)))
        elif self.form.normalise == "tanh":
            t = t * (1.0 - self.p * self.p)
        return t

    def sloped(self, t: Tensor) -> Tensor:
        """`t` times the derivative of the scores' leaky ReLU."""
        form = self.form
        if form.score == "vector" or form.slope == 1.0:
            return t
        return torch.where(self.s > 0, t, t * form.slope)

    def tangent(self, by: Tensors) -> Tensor:
        """The tangent of the result, of those of the tensors."""
        given = self.given
        terms, sent = [], []
        s = self._score_tangent(by)
        w = None if s is None else self.by_score(self.sloped(s))
        if w is not None and given.mask is not None:
            w = w * given.mask
        if by.mask is not None:
            masked = self.p * by.mask
            w = masked if w is None else w + masked
        if w is not None:
            terms.append(self.sum(given.value, w))
        if by.value is not None:
            terms.append(self.sum(by.value, self.w))
        if given.edge_query is None:
            return sum(terms[1:], terms[0])
        if w is not None:
            sent.append(self._sent(w, given.edges))
        if by.edges is not None:
            sent.append(self._sent(self.w, by.edges))
        like = (self.form.num_dst, *self.value.shape[1:])
        y = sum(terms[1:], terms[0]) if terms else self.value.new_zeros(like)
        rest = sum(sent[1:], sent[0]) if sent else torch.zeros_like(given.edge_query)
        return torch.cat([y, rest], -1)

    def _score_tangent(self, by: Tensors) -> Tensor | None:
        given, score = self.given, self.form.score
        terms = [] if by.bias is None else [by.bias]
        if score == "sum" and not (by.key is None and by.query is None):
            terms.append(self.spread(by.key, by.query))
        if score == "dot":
            pairs = ((by.key, given.query), (given.key, by.query))
            terms += [self.dot(a, b) for a, b in pairs if a is not None and b is not None]
            if by.edge_query is not None:
                terms.append(self._asked(by.edge_query, given.edges))
            if by.edges is not None and given.edge_query is not None:
                terms.append(self._asked(given.edge_query, by.edges))
        if score == "vector":
            terms += self._vector_tangent(by)
        return sum(terms[1:], terms[0]) if terms else None

    def _vector_tangent(self, by: Tensors) -> list[Tensor]:
        given, slope = self.given, self.form.slope
        assert self.z is not None
        assert given.weight is not None
        terms = [] if by.weight is None else [(leaky_relu(self.z, slope) * by.weight).sum(-1)]
        edges = []
        if by.edges is not None:
            edges.append(by.edges if given.projection is None else by.edges @ given.projection)
        if by.projection is not None:
            assert given.edges is not None
            edges.append(given.edges @ by.projection)
        of_edges = sum(edges[1:], edges[0]) if edges else None
        if by.key is not None or by.query is not None:
            z = self._vectors(by.key, by.query, of_edges, None)
        elif of_edges is not None:
            z = of_edges.reshape(self.z.shape)
        else:
            return terms
        z = torch.where(self.z > 0, z, z * slope)
        return [*terms, (z * given.weight).sum(-1)]

    def gradients(self, grad: Tensor) -> Tensors:
        """Those by all tensors, of that by the result."""
        given, width = self.given, self.value.shape[-1]
        grad, grad_sent = grad[..., :width], grad[..., width:]
        by_w = self.dot(given.value, grad)
        found: dict[str, Tensor | None] = {"value": self.sum(grad, self.w, True)}
        if given.edge_query is not None:
            assert given.edges is not None
            of_target = self._of_target(grad_sent)
            by_w = by_w + (of_target * given.edges.unsqueeze(1)).sum(-1)
            sent = self.w.unsqueeze(-1) * of_target
        if given.mask is not None:
            found["mask"] = self.p * by_w
            by_w = by_w * given.mask
        s = self.sloped(self.by_score(by_w))
        if given.bias is not None:
            found["bias"] = s
        if self.form.score == "sum":
            found["key"] = None if given.key is None else self.gathered(s, True)
            found["query"] = None if given.query is None else self.gathered(s)
        elif self.form.score == "dot":
            found["key"] = self.sum(given.query, s, True)
            found["query"] = self.sum(given.key, s)
            if given.edge_query is not None:
                found["edge_query"] = self._sent(s, given.edges)
                asked = s.unsqueeze(-1) * self._of_target(given.edge_query)
                found["edges"] = (asked + sent).sum(1)
        elif self.form.score == "vector":
            found |= self._vector_gradients(s)
        return Tensors(**found)

    def _vector_gradients(self, s: Tensor) -> dict[str, Tensor | None]:
        given, slope = self.given, self.form.slope
        assert self.z is not None
        assert given.weight is not None
        s = s.unsqueeze(-1)
        z = s * given.weight
        z = _flat(torch.where(self.z > 0, z, z * slope))
        found: dict[str, Tensor | None] = {
            "weight": (s * leaky_relu(self.z, slope)).sum(0),
            "key": self.gathered(z, True).reshape(self.value.shape[0], *given.weight.shape),
            "query": self.gathered(z).reshape(self.form.num_dst, *given.weight.shape),
            "edges": None if given.edges is None else z,
        }
        if given.projection is not None:
            assert given.edges is not None
            found["edges"] = z @ given.projection.t()
            found["projection"] = given.edges.t() @ z
        return found


def _flat(t: Tensor) -> Tensor:
    """`[N, H, C]` as `[N, H * C]`, also where there are none."""
    return t.reshape(t.shape[0], t.shape[1] * t.shape[2])
