"""Attention that a user's layer declares, with `hag_layer(score=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.nn import Dropout, Module

from hag_plugin.arguments import check_choice
from hag_plugin.ops.attention import Normalise, Score
from hag_plugin.ops.attention_pieces import NORMALISATIONS, SCORES
from hag_plugin.pyg.recipes.recipe import PAIRS, Call
from hag_plugin.pyg.recipes.scored import ScoredGraph

CHECKED = "_hag_checked"  # in a layer: that its declaration was compared with its own code

# A number or a tensor; the name of the layer's attribute that holds it; a function of the layer.
Setting = Any


@dataclass(frozen=True)
class Attention:
    """How a layer attends: a recipe's `attention`.

    Attributes:
        score: how scores are made, as `ops.attention.attend` has it.
        normalise: what is made of them, likewise.
        names: of the tensors that `attend` takes, the arguments of `propagate` that they are.
        slope: of the leaky ReLU.
        scale: of the score "dot", that products are multiplied with before a bias is added.
        weight: of the score "vector", `[H, K]`.
        dropout: the probability.
    """

    score: Score
    normalise: Normalise
    names: Mapping[str, str]
    slope: Setting
    scale: Setting
    weight: Setting
    dropout: Setting

    @property
    def edge_values(self) -> tuple[str, ...]:
        """The arguments with a row for each edge."""
        return tuple(self.names[name] for name in ("bias", "edges") if name in self.names)

    def check(self, conv: Any, given: Call) -> None:
        """Whether `propagate` is given what was declared.

        Raises:
            ValueError: an argument is missing.
        """
        needed = {"given": ("value", "bias"), "sum": ("value",)}
        for name in needed.get(self.score, ("value", "key", "query")):
            if given.get(self.names[name]) is None:
                raise ValueError(
                    f"{type(conv).__name__} is declared with hag_layer(score={self.score!r}), with "
                    f"{name}={self.names[name]!r}, but propagate got none of that name; it got "
                    f"{sorted(k for k, v in given.items() if v is not None)}"
                )

    def ends(self, given: Call) -> tuple[Any, Any]:
        """What is of the sources and what is of the targets, among the arguments."""
        return self._of(given, "value"), self._of(given, "query")

    def _of(self, given: Call, name: str) -> Any:
        value = given.get(self.names.get(name, ""))
        if isinstance(value, PAIRS):
            return value[1 if name == "query" else 0]
        return value

    def __call__(self, conv: Any, graph: ScoredGraph, given: Call) -> Tensor:
        """What the layer's messages come to, summed: `[N_dst, H, C]`, or `[N_dst, C]`."""
        found: dict[str, Any] = {name: self._of(given, name) for name in self.names}
        value = found.pop("value")
        has_heads = value.dim() == 3
        heads = value.shape[1] if has_heads else 1
        vectors = self.score in ("dot", "vector")
        for name, tensor in found.items():
            if tensor is None or (has_heads and name != "edges"):
                continue
            if name == "edges":
                found[name] = tensor.flatten(1)
            elif tensor.dim() == 1 or (vectors and name != "bias"):
                found[name] = tensor.unsqueeze(1)
        scale = setting(conv, "scale", self.scale)
        if found.get("query") is not None and (isinstance(scale, Tensor) or scale != 1.0):
            found["query"] = found["query"] * scale
        slope = setting(conv, "slope", self.slope)
        if isinstance(slope, Tensor) and slope.requires_grad:
            raise TypeError(
                f"the slope that {type(conv).__name__} declares with hag_layer is a tensor with "
                "gradients; expected a number"
            )
        drop = setting(conv, "dropout", self.dropout)
        if isinstance(drop, Dropout):
            how = {"dropout": drop.p, "training": drop.training}
        else:
            how = {"dropout": drop}
        if self.score == "vector":
            weight = setting(conv, "weight", self.weight)
            if not isinstance(weight, Tensor):
                raise TypeError(
                    f"the weight that {type(conv).__name__} declares with hag_layer is a "
                    f"{type(weight).__name__}; expected a tensor [H, K]"
                )
            found["weight"] = weight.view(heads, -1)
        out = graph.attend(
            conv,
            value if has_heads else value.unsqueeze(1),
            score=self.score,
            normalise=self.normalise,
            slope=float(slope),
            **how,
            **found,
        )
        return out if has_heads else out.squeeze(1)


def setting(conv: Any, name: str, given: Setting) -> Any:
    """What a setting is for a layer.

    Raises:
        ValueError: the layer has no attribute of that name.
    """
    if isinstance(given, str):
        try:
            given = attrgetter(given)(conv)
        except AttributeError:
            raise ValueError(
                f"{type(conv).__name__} is declared with hag_layer to have its {name} as the "
                f"attribute {given!r}, but has none of that name"
            ) from None
    elif callable(given) and not isinstance(given, Module):
        given = given(conv)
    return given


def numbers_of(conv: Any, value: Tensor) -> tuple[int, int]:
    """The heads of values `[N, H, C]` or `[N, C]`, and how many numbers a message has."""
    return (value.shape[1] if value.dim() == 3 else 1), value.shape[1:].numel()


# What may be declared ---------------------------------------------------------------------------

SETTINGS = {"slope": 1.0, "scale": 1.0, "weight": "att", "dropout": 0.0}
NAMES = {"key": "key", "query": "query", "value": "value", "bias": None, "edges": None}


def declared_attention(score: Any, normalise: Any = "softmax", **given: Any) -> Attention:
    """What was declared, of the arguments of `hag_layer`.

    Raises:
        TypeError: an argument is unknown, or of no use with the score.
        ValueError: the score, or what normalises it, is none of those that there are.
    """
    check_choice("score", score, SCORES)
    check_choice("normalise", normalise, NORMALISATIONS)
    unknown = given.keys() - {*SETTINGS, *NAMES}
    if unknown:
        raise TypeError(f"hag_layer got {min(unknown)!r}; expected some of {[*NAMES, *SETTINGS]}")
    of_no_use = {"scale": "dot", "weight": "vector", "edges": "vector"}
    for name, needed in of_no_use.items():
        if name in given and score != needed:
            raise TypeError(f"{name} is of no use with the score {score!r}; it is for {needed!r}")
    names = {name: given.get(name, default) for name, default in NAMES.items()}
    if score == "given":
        for name in ("key", "query"):
            if name in given:
                raise TypeError(f"{name} is of no use with the score 'given', which is its bias")
            names[name] = None
        if names["bias"] is None:
            raise TypeError("the score 'given' needs a bias: the argument that has the scores")
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}; expected the name of an argument of propagate")
    settings = {name: given.get(name, default) for name, default in SETTINGS.items()}
    named = {name: value for name, value in names.items() if value is not None}
    return Attention(score=score, normalise=normalise, names=named, **settings)
