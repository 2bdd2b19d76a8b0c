"""Writes `docs/layers.md`, and lists of layers in other pages, from the tables that decide.

python -m examples.benchmark.layers_page
"""

from __future__ import annotations

import re
from pathlib import Path

from hag_plugin.dgl.recipes.table import RECIPES as DGL_RECIPES
from hag_plugin.files import write_whole
from hag_plugin.layers import dgl, pyg
from hag_plugin.limits import limits
from hag_plugin.parallel.model.layers import TABLE
from hag_plugin.pyg import layers
from hag_plugin.pyg.recipes.forms import FORMS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGE, LISTS = DOCS / "layers.md", (DOCS / "pyg.md", DOCS / "dgl.md")
RECORDS = {"PyG": pyg.RECORDS, "DGL": dgl.RECORDS}
MARKED = re.compile(r"(<!-- layers of (\w+) -->).*?(<!-- end of layers -->)")


def page() -> str:
    """The page as Markdown."""
    few, blocks = f"{limits.few_messages:,}", limits.block_messages
    attending = ", ".join(
        sorted(cls.__name__ for cls, recipe in DGL_RECIPES.items() if recipe.attention is not None)
    )
    in_blocks = ", ".join(sorted(cls.__name__ for cls in FORMS))
    return f"""# Layers over a HAG

Written by `python -m examples.benchmark.layers_page` from the tables that decide it.

## PyG

`accelerate` lets these layers of `torch_geometric.nn` run over a HAG, with the same results, where
their aggregation is sum, mean, max, min, or follows from these: var, std, softmax, powermean,
variance-preserving, several at once, degree scalers. Where a condition does not hold, the layer
runs its stock code, also where it is handed a HAG; `hp.explain(model)` says so, and counts for each
layer what its calls ran on: a HAG, the plain graph in the same kernels, or stock code.

{layers()}

Layers of attention weigh each message by a score of both ends of its edge, so that there are no
sums to share. They run in one pass over the edges instead, forward and backward, without a tensor
of edges times features; on a CPU the first time that they meet a graph, too. Calls with
`return_attention_weights` run stock code. RGATConv multiplies each node once with the matrix of
each relation that it has edges of, where stock gathers a matrix for each edge. In compiled code
SuperGATConv in training, whose loss draws edges, and RGATConv that attends within relations run
between two parts of it, as outside of it: no compiler traces stock's code in one piece either.
RGATConv across relations, whose stock code is traced in one piece, runs that there: how many pairs
of nodes and relations have edges is told by no shape.

Layers whose messages are made of both ends of an edge, or of features of the edge, have no sums to
share either. In calls whose messages hold {blocks:,} numbers or more in all, these compute and
aggregate them a block of edges at a time, forward and backward, without a tensor of edges times
features: {in_blocks}. Not where a part of the message draws at random, is normalised over all
edges, has hooks, or is not known to treat each edge alone; nor where the aggregation is none of
those above, under autocast, with transforms of `torch.func`, in compiled code or on a GPU. Second
derivatives are computed of all messages at once.

HeteroConv, DirGNNConv, GPSConv, AntiSymmetricConv and models from `to_hetero` run as the layers
inside them do. No HAG serves the other layers; but for blocks of edges, they run stock code:

{_others()}

In training, a call whose messages hold fewer than {few} numbers in all (edges times features)
runs stock code, which is mostly faster there; but for layers that normalise their edge index at
each call.

### Your own attention

`@hp.hag_layer(score=...)` declares of your own layer that its message is its value times an
attention of a known form. It runs on the kernels where the model was accelerated, or the layer is
given a HAG; your `message` is then no longer called.

```python
@hp.hag_layer(score="dot", scale=lambda conv: conv.width**-0.5, dropout="dropout")
class MyAttention(MessagePassing):
    def __init__(self, width, heads, dropout=0.5):
        super().__init__(node_dim=0)
        self.width, self.heads, self.dropout = width, heads, dropout
        self.lin = torch.nn.Linear(width, 3 * heads * width)

    def forward(self, x, edge_index):
        key, query, value = self.lin(x).view(-1, self.heads, 3 * self.width).chunk(3, dim=-1)
        return self.propagate(edge_index, key=key, query=query, value=value).flatten(1)

    def message(self, key_j, query_i, value_j, index, ptr, size_i):
        scores = (key_j * query_i).sum(-1) * self.width**-0.5
        p = softmax(scores, index, ptr, size_i)
        return value_j * F.dropout(p, self.dropout, self.training).unsqueeze(-1)
```

| score | of an edge j -> i and a head | `propagate` is given, besides the value |
|---|---|---|
| "dot" | `scale * <key_j, query_i>` | keys and queries `[N, H, K]` |
| "sum" | `key_j + query_i` | `[N, H]`; the query may be left out |
| "vector" | `<weight, leaky_relu(key_j + query_i + edges_e)>` | the same; `edges` `[E, H * K]` |
| "given" | `bias_e` | `bias` `[E, H]` |

To any score a `bias` `[E, H]` may be added. A leaky ReLU of `slope` follows; that of "vector" is
inside of the product. Then comes a softmax over the edges of each target (`normalise="tanh"` or
"none": something else), and `dropout`. Values are `[N, H, C]` with `node_dim=0`; or, of one head,
`[N, C]`, with keys and queries `[N, K]`.

`key="k"` says that the keys are the argument `k` of `propagate`, and so on; `bias` and `edges` have
no name unless one is declared. `slope` (1: no leaky ReLU), `scale` (1), `dropout` (0) and `weight`
(`[H, K]`, the attribute "att") are numbers or tensors, names of the layer's attributes, or
functions of the layer. The first time that it runs on the kernels the layer is compared with its
own `message` on a small graph, in float64, with what it draws in training. An `aggr` other than a
sum, and whatever is left to stock code above, run your `message` as before.

## DGL

These layers of `dgl.nn` run on the HAGs of a graph from `ToHAG`, and on those of a plain graph that
comes back in an accelerated model. So does whatever else calls `update_all` with `copy_u`. With
gradients, max and min run on the HAG where edges are sorted by source.

{_table([(cls.__name__, recipe.eligible_when) for cls, recipe in DGL_RECIPES.items()])}

Layers of attention run in one pass over the edges instead, forward and backward, in an accelerated
model, on any graph of one edge type; the first time that they meet it, too, where that is faster:
{attending}. Calls
with `get_attention`, under autocast or in compiled code run stock code.

Every other layer runs as before.

## Split over devices

`hp.parallel.plan` knows these layers in all its strategies. Others run as they are written: on the
rows of each device and those that its edges read, where each row depends on the edges into it and
their ends alone (PyG's GATv2Conv, TransformerConv, GINEConv, EdgeConv, NNConv and more; it is found
by the layer's own results on small graphs), else whole on every device.

- PyG: {", ".join(_known("torch_geometric"))}
- DGL: {", ".join(_known("dgl"))}
"""


def _others() -> str:
    """PyG's layers that no HAG serves, by the reason."""
    lines = ["| layers | why not |", "|---|---|"]
    for reason in sorted({*pyg.NO_RECORD.values()}):
        names = sorted(name for name, why in pyg.NO_RECORD.items() if why == reason)
        lines.append(f"| {', '.join(names)} | {reason} |")
    return "\n".join(lines)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| layer | eligible when |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {when} |" for name, when in sorted(rows)])


def _known(library: str) -> list[str]:
    return sorted(name.rpartition(".")[2] for name in TABLE if name.startswith(f"{library}."))


def with_lists(text: str) -> str:
    """A page with the lists between its marks written anew."""

    def listed(mark: re.Match[str]) -> str:
        return mark[1] + ", ".join(record.layer for record in RECORDS[mark[2]]) + mark[3]

    return MARKED.sub(listed, text)


def main() -> None:
    """Writes the page and the lists."""
    PAGE.parent.mkdir(exist_ok=True)
    write_whole(PAGE, page().encode())
    for path in LISTS:
        write_whole(path, with_lists(path.read_text()).encode())


if __name__ == "__main__":
    main()
