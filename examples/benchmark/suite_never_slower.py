"""Suite `never-slower`: "auto" against "none", and against the fastest program it could have taken.

On every graph, matrix, reducer, width, dtype and direction; with each instruction set, and with the
cost constants of other machines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hag_plugin as hp
from hag_plugin.hag import constants
from hag_plugin.hag.candidates import PLAIN
from hag_plugin.kernels import _cpu

from . import foreign_constants, variants
from .crashes import entering
from .graphs import LOOPS, Graph
from .plan import Cell, Plan
from .sides import AUTO, NONE, is_ours
from .timing import Rounds, alone, interleave
from .verdict import SAME, Rule, implausible, judge

NAME = "never-slower"
SECONDS = 1.0
ROUNDS = 9
# Where pages lie decides what the caches keep of them: two allocations of the same features give
# ratios of programs that differ by more than 5 % in a quarter of the cells.
PLACES = 3
WIDTHS = (8, 16, 32, 64, 96, 128, 256, 512)
RULE = Rule(least=0.97)
LARGEST_REGRET = 0.10  # a larger one is measured once more
NONE_AGAIN, CHOSEN_AGAIN = "hag none again", "chosen again"
BLOCK = 64  # columns that are compared at a time
# Of the sum of magnitudes in a row: what another order of additions may differ by.
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float64: 1e-13}


def cells(plan: Plan) -> Iterator[Cell]:
    """Setting by setting; in a setting, matrix by matrix, so that one HAG serves all widths."""
    axes = {
        "instruction_set": plan.instruction_sets,
        "constants": plan.constants,
        "graph": plan.graphs,
        "loops": plan.loops,
        "direction": plan.directions,
        "reduce": plan.reduces,
        "dtype": plan.dtypes,
        "width": plan.widths,
    }
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def environment(cell: Cell, folder: Path) -> dict[str, str]:
    """The environment variables that the cell's process needs."""
    costs = foreign_constants.environment(cell["constants"], folder)
    return {"HAG_PLUGIN_ISA": cell["instruction_set"], **costs}


def measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    """`ratio`: of "none" to "auto"; `regret`: of the choice over the fastest candidate, less 1.

    Where the choice is the plain program's arrays there is no ratio; the regret is still timed, if
    there was something to choose.
    """
    with torch.no_grad():
        return _measure(graph, cell, plan)


def _measure(graph: Graph, cell: Cell, plan: Plan) -> dict[str, Any]:
    loops, reduce = cell["loops"], cell["reduce"]
    dtype = getattr(torch, cell["dtype"])
    auto, none = (_hag(graph, cell, method) for method in ("auto", "none"))
    chosen = variants.choice(auto, cell["width"], dtype, loops, reduce)
    programs = variants.candidates(auto, loops, reduce)
    plain = none.program(LOOPS[loops], idempotent=reduce == "max")
    is_same = variants.same(programs[chosen.name], plain)
    about = {
        "chosen": chosen.name,
        "by": chosen.by,
        "candidates": list(programs),
        "in_force": [_cpu.instruction_set(), constants.in_force().digest],
    }
    x = graph.features(cell["width"]).to(dtype)
    out = torch.empty_like(x)

    def sides(x: Tensor, out: Tensor) -> dict[str, Callable[[], Any]]:
        calls = {} if is_same else {
            AUTO: _public(auto, x, out, loops, reduce), NONE: _public(none, x, out, loops, reduce)
        }  # fmt: skip
        if len(programs) > 1:
            calls |= {name: variants.run(p, x, out, reduce) for name, p in programs.items()}
        return calls

    calls = sides(x, out)
    wrong = _unequal(calls, none, x, out, loops, reduce)
    if wrong or not calls:
        verdict = "wrong" if wrong else SAME
        return {"wrong": wrong, "forms": {}, "verdict": verdict, **about}
    others = [name for name in programs if name != chosen.name]
    runs = {AUTO: chosen.name, CHOSEN_AGAIN: chosen.name, NONE: PLAIN, NONE_AGAIN: PLAIN}
    on_one = {n: alone(variants.run(p, x, out, reduce, 1)) for n, p in programs.items()}

    def attempt(number: int) -> dict[str, Any]:
        budget = plan.budget(SECONDS, ROUNDS, longer=number + 1).shared(PLACES)
        parts, held = [], []
        for place in range(PLACES):
            held.append((x.clone(), torch.empty_like(out)))  # held: the next ones lie elsewhere
            again = sides(*held[-1])
            again |= {CHOSEN_AGAIN: again[chosen.name]} if is_same else {NONE_AGAIN: again[NONE]}
            seed = PLACES * number + place
            parts.append(interleave(again, budget, together=tuple(again), seed=seed))
        rounds = Rounds.joined(parts)
        pair = (chosen.name, CHOSEN_AGAIN) if is_same else (NONE, NONE_AGAIN)
        spread = rounds.control(*pair)["spread"]
        # Nothing to be slower than: what is left to decide is whether the spread says anything.
        ratio = 1.0 if is_same else rounds.ratio(NONE, AUTO)
        medians = _medians(rounds)
        of_one = {side: on_one[runs.get(side, side)] for side in medians}
        why = implausible(medians, of_one, torch.get_num_threads())
        return {"ratio": ratio, "spread": spread, "seconds": medians, "implausible": why,
                **_regret(rounds, chosen.name, others, spread)}  # fmt: skip

    judged = judge(RULE, attempt)
    if judged.get("regret", 0.0) > LARGEST_REGRET:
        again = attempt(judged["attempts"])
        if RULE.says(again):
            judged |= {"regret": min(judged["regret"], again["regret"]), "regret_again": True}
    if is_same:
        judged |= {"ratio": None, "regret_verdict": judged["verdict"], "verdict": SAME}
    return {"wrong": {}, "forms": {}, **about, **judged}


def _hag(graph: Graph, cell: Cell, method: str) -> hp.HAG:
    """One HAG of a matrix for all its widths and dtypes."""
    loops, direction = cell["loops"], cell["direction"]
    if direction == "forward":
        return graph.hag(method, loops, 64)
    hag: hp.HAG = graph.kept(("reverse", method), lambda: graph.reverse_hag(method))
    for idempotent in (False, True):
        hag.program(LOOPS[loops], idempotent=idempotent, progress=False)
    return hag


def _public(hag: hp.HAG, x: Tensor, out: Tensor, loops: str, reduce: Any) -> Callable[[], Any]:
    mode = LOOPS[loops]
    return lambda: hp.aggregate(x, hag, reduce, self_loops=mode, out=out)


def _medians(rounds: Rounds) -> dict[str, float]:
    """Of each side, with the digits that count: there are many cells."""
    return {side: float(f"{t['median']:.4g}") for side, t in rounds.summary().items()}


def _regret(rounds: Rounds, chosen: str, others: list[str], spread: float) -> dict[str, Any]:
    """How much longer the choice takes than the fastest candidate, by medians over rounds.

    0 where it is no more than one thing measured twice differs by: the fastest of several equal
    candidates always seems ahead.
    """
    if not others:
        return {}
    over = {name: rounds.ratio(chosen, name) for name in others}
    fastest = max(over, key=over.__getitem__)
    if over[fastest] - 1.0 <= spread:
        return {"regret": 0.0, "fastest": chosen}
    return {"regret": over[fastest] - 1.0, "fastest": fastest}


def _unequal(
    calls: dict[str, Callable[[], Any]],
    none: hp.HAG,
    x: Tensor,
    out: Tensor,
    loops: str,
    reduce: Any,
) -> dict[str, str]:
    """The sides whose result is not the plain program's; a row not written is NaN.

    Compared block by block of columns: wide features of a large graph fill the memory.
    """
    mode = LOOPS[loops]

    @lru_cache(maxsize=1)
    def expected(start: int) -> tuple[Tensor, Tensor]:
        block = x[:, start : start + BLOCK].contiguous()
        plain = hp.aggregate(block, none, reduce, self_loops=mode)
        if reduce == "max":
            return plain, torch.zeros(())
        size = hp.aggregate(block.abs(), none, self_loops=mode)
        return plain, size.mul_(ROUNDING[x.dtype]).add_(1e-30)

    wrong = {}
    for name, call in calls.items():
        entering(name)
        out.fill_(float("nan"))
        call()
        for start in range(0, x.shape[1], BLOCK):
            plain, allowed = expected(start)
            difference = (out[:, start : start + BLOCK] - plain).abs_()
            if not bool((difference <= allowed).all()):
                worst = float(difference.nan_to_num(nan=float("inf")).max())
                side = name if is_ours(name) else f"hag candidate {name}"
                wrong[side] = f"differs from the plain program by up to {worst:.3g}"
    return wrong
