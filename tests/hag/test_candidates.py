"""Which program runs: the candidates of a matrix, the table of their seconds, and who says so."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

import hag_plugin as hp
from hag_plugin.hag import constants, samples, search, seconds
from hag_plugin.hag.calibration import TIMED_AS
from hag_plugin.hag.candidates import (
    CAUTION,
    CHOOSE,
    IN_ORDER,
    NAMES,
    PLAIN,
    REORDERED,
    ROW_BYTES,
    SHARED,
    UNSEEN,
    Choice,
    Table,
)
from hag_plugin.hag.cost import Work
from hag_plugin.hag.program import SELF_LOOPS, SelfLoops
from hag_plugin.hag.rates import (
    ARITHMETICS,
    DEFAULT,
    EXTREMUM,
    HALF_EXTREMUM,
    HALF_SUM,
    SUM,
    Arithmetic,
    Constants,
    RowCost,
)
from hag_plugin.testing import count_programs, limits

WIDTHS = (1, 8, 16, 17, 64, 128, 512)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPE = len(ARITHMETICS), len(ROW_BYTES)
TIMED = {"timed_seconds": 1.0, "timed_share": math.inf}  # however short the search


class Clock:
    """Each look at it takes so many seconds, and nothing else does."""

    def __init__(self, tick: float) -> None:
        self.tick = tick
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def communities(num_nodes: int = 1200, size: int = 30, seed: int = 0) -> torch.Tensor:
    """Cliques whose nodes are spread over all ids: the search takes the rows in another order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_nodes, generator=generator).view(-1, size)
    edges = [torch.combinations(members, 2).T for members in order]
    noise = torch.randint(num_nodes, (2, 4 * num_nodes), generator=generator)
    whole = torch.cat([*edges, *(e.flip(0) for e in edges), noise], 1)
    return whole[:, torch.randperm(whole.shape[1], generator=generator)]


@pytest.fixture(scope="module")
def hag() -> hp.HAG:
    made = hp.build_hag(communities(), num_nodes=1200, self_loops=SELF_LOOPS, choose="model")
    for mode in SELF_LOOPS:
        made.program(mode, idempotent=True)
    return made


def with_table(hag: hp.HAG, fastest: str, at: int | None = None, kind: int | None = None) -> hp.HAG:
    """The HAG with tables in which one candidate is the fastest, for all rows or for some."""
    state = hag._state()
    for entry in state["programs"]:
        names = entry["table"]["names"]
        of = np.full((len(names), *SHAPE), 1.0)
        if fastest != SHARED and (at, kind) != (None, None):
            of[names.index(SHARED)] = 0.9
        whole = slice(None)
        where = whole if kind is None else kind, whole if at is None else at
        of[(names.index(fastest), *where)] = 0.5
        error = np.full(SHAPE, 0.1).tolist()
        entry["table"] = {"by": "model", "names": names, "seconds": of.tolist(), "error": error}
    return hp.rebuild_hag(state)


# All candidates are exact ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SELF_LOOPS)
@pytest.mark.parametrize("idempotent", [False, True])
def test_every_candidate_computes_the_matrix(
    hag: hp.HAG, mode: SelfLoops, idempotent: bool
) -> None:
    """In small integers, which no order of sums can round; loops and duplicates included."""
    x = torch.randint(-4, 5, (1200, 5)).double()
    source, target = hag.edge_index
    if mode == "fill":
        source, target = source[source != target], target[source != target]
    if mode:
        nodes = torch.arange(1200)
        source, target = torch.cat([source, nodes]), torch.cat([target, nodes])
    reduce = "amax" if idempotent else "sum"
    index = target[:, None].expand(-1, 5)
    expected = x.new_zeros(1200, 5).scatter_reduce(0, index, x[source], reduce, include_self=False)
    found = hag.candidates(mode, idempotent=idempotent)
    assert set(found) == set(NAMES)
    assert found[PLAIN].is_plain
    assert found[REORDERED].is_plain
    assert not found[SHARED].is_plain
    assert not torch.equal(found[PLAIN].target, found[REORDERED].target)
    for name in found:
        y = hp.aggregate(x, with_table(hag, name), "max" if idempotent else "sum", self_loops=mode)
        assert torch.equal(y, expected), name


@pytest.mark.parametrize("fastest", NAMES)
@pytest.mark.parametrize(("width", "dtype"), list(itertools.product(WIDTHS, DTYPES)))
def test_the_fastest_runs(hag: hp.HAG, fastest: str, width: int, dtype: torch.dtype) -> None:
    told = with_table(hag, fastest)
    x = torch.ones(1200, width, dtype=dtype, requires_grad=True)
    with count_programs() as ran:
        hp.aggregate(x, told, self_loops="add")
        hp.aggregate(x, told, "max")
    expected = [
        told.candidates(m, idempotent=i)[fastest] for m, i in (("add", False), (False, True))
    ]
    assert [run.program for run in ran.programs] == expected
    assert told.choice(width, dtype, "add").name == fastest


MACHINES = {
    "the default": DEFAULT,
    "slow ops": replace(DEFAULT, op=1e-8, scratch=RowCost(1e-8, 1e-11)),
    "slow comparisons": replace(DEFAULT, extremum=RowCost(1e-8, 1e-10)),
    "small caches": replace(DEFAULT, cache_bytes=1 << 14, last_bytes=1 << 17),
    "no caches": replace(DEFAULT, cache_bytes=0, last_bytes=0),
    "large caches": replace(DEFAULT, cache_bytes=1 << 30, last_bytes=1 << 34),
    "slow memory": replace(DEFAULT, cache_bytes=1 << 14, last_bytes=1 << 17, memory=1e-9),
}


@pytest.mark.parametrize("mode", [False, "add"])
@pytest.mark.parametrize("machine", MACHINES)
def test_no_machine_runs_what_it_predicts_to_be_slower(
    machine: str, mode: SelfLoops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants.write_constants(tmp_path / "costs.json", MACHINES[machine], {})
    monkeypatch.setenv("HAG_PLUGIN_COSTS", str(tmp_path / "costs.json"))
    hag = hp.build_hag(communities(), num_nodes=1200, self_loops=mode, choose="model")
    for width, dtype, idempotent in itertools.product(WIDTHS, DTYPES, [False, True]):
        choice = hag.choice(width, dtype, mode, idempotent=idempotent)
        assert choice.by == "model"
        assert choice.seconds[choice.name] <= choice.seconds[PLAIN] + UNSEEN


@given(
    sizes=st.lists(st.integers(0, 1 << 26), min_size=2, max_size=6),
    memory=st.floats(0.0, 1e-9),
    arithmetic=st.sampled_from(ARITHMETICS),
)
def test_the_less_a_cache_keeps_the_more_a_hag_saves(
    hag: hp.HAG, sizes: list[int], memory: float, arithmetic: Arithmetic
) -> None:
    """Which reads fewer of the rows that other tiles have read."""
    works = {name: Work.of(program) for name, program in hag.candidates().items()}
    assert works[SHARED].first < works[PLAIN].first
    rows, saved = np.array(ROW_BYTES), list[np.ndarray]()
    for size in sorted(sizes, reverse=True):
        c = replace(DEFAULT, last_bytes=size, memory=memory)
        took = {n: w.seconds(rows, constants=c, arithmetic=arithmetic) for n, w in works.items()}
        saved.append(took[PLAIN] - took[SHARED])
    assert (np.diff(saved, axis=0) >= -1e-12).all()


@pytest.mark.parametrize("at", range(len(ROW_BYTES)))
def test_each_width_has_its_own(hag: hp.HAG, at: int) -> None:
    told = with_table(hag, PLAIN, at)
    for width, dtype in itertools.product(range(1, 600), (torch.float32, torch.float64)):
        row_bytes = width * (8 if dtype == torch.float64 else 4)
        nearest = min(range(len(ROW_BYTES)), key=lambda i: abs(np.log(row_bytes / ROW_BYTES[i])))
        assert (told.choice(width, dtype).name == PLAIN) == (nearest == at)


@pytest.mark.parametrize("kind", range(len(ARITHMETICS)))
def test_each_arithmetic_has_its_own(hag: hp.HAG, kind: int) -> None:
    told = with_table(hag, PLAIN, None, kind)
    for dtype, is_extremum in itertools.product(DTYPES, (False, True)):
        own = ARITHMETICS.index((dtype.itemsize == 2, is_extremum))
        choice = told.choice(24, dtype, idempotent=is_extremum)
        assert choice.name == (PLAIN if own == kind else SHARED)
        with count_programs() as ran:
            x = torch.ones(1200, 24, dtype=dtype)
            hp.aggregate(x, told, "max" if is_extremum else "sum")
        assert ran.programs[0].program is told.candidates(idempotent=is_extremum)[choice.name]


@pytest.mark.parametrize("choose", CHOOSE)
def test_directions_choose_for_themselves(choose: str) -> None:
    """A directed graph's reverse has candidates, and a table, of its own."""
    edges = communities()
    hag = hp.build_hag(edges[:, edges[0] < 900], size=(1200, 1200), choose=choose)
    x = torch.randn(1200, 16, requires_grad=True)
    with count_programs() as ran:
        hp.aggregate(x, hag).sum().backward()
    for run, graph in zip(ran.programs, (hag, hag.transpose()), strict=True):
        assert run.program is graph.candidates()[graph.choice(16).name]


@given(st.data(), st.permutations(NAMES), st.booleans())
def test_a_table_chooses_entry_by_entry(data: st.DataObject, names: list[str], two: bool) -> None:
    """As a loop over the candidates says it."""
    if two:
        names.remove(REORDERED)
    exponents = st.lists(st.integers(-12, 12), min_size=len(names), max_size=len(names))
    of = np.ones((len(names), *SHAPE))
    at = data.draw(st.integers(0, len(ROW_BYTES) - 1))
    for kind in range(len(ARITHMETICS)):
        of[:, kind, at] = 1e-5 * 1.02 ** np.array(data.draw(exponents))
    error = np.full(SHAPE, data.draw(st.sampled_from([0.0, 0.1, 0.4])))
    ahead = math.exp(-CAUTION * error[0, 0])
    table = Table("model", tuple(names), of, error)
    for kind, arithmetic in enumerate(ARITHMETICS):
        each = dict(zip(names, of[:, kind, at].tolist(), strict=True))
        choice = table.choose(arithmetic, ROW_BYTES[at])
        assert choice.seconds == each
        shared = each.pop(SHARED)
        plain = PLAIN
        if each.get(REORDERED, math.inf) < min(IN_ORDER, ahead) * each[PLAIN]:
            plain = REORDERED
        best = each[plain]
        wins = shared <= min(0.95, ahead) * best or (best <= 1e-5 and shared <= best + 5e-7)
        assert choice.name == (SHARED if wins else plain)
        assert choice.name in table.fastest(arithmetic.is_extremum)


def test_what_no_call_shows_goes_to_the_hag() -> None:
    for seconds_of_plain, ratio, name in (
        (1e-6, 1.1, SHARED),
        (1e-3, 1.1, PLAIN),
        (1e-3, 1.0, PLAIN),
        (1e-3, 0.9, SHARED),
    ):
        of = np.full((2, *SHAPE), seconds_of_plain)
        of[1] *= ratio
        table = Table("model", (PLAIN, SHARED), of, np.zeros(SHAPE))
        assert table.choose(SUM, 64).name == name


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.sampled_from((SHARED, REORDERED)))
def test_the_less_is_known_the_more_must_be_promised(less: float, more: float, name: str) -> None:
    """What is taken in place of the plain graph by a larger error is taken by a smaller one."""
    less, more = sorted((less, more))
    of = np.full((3, *SHAPE), 1e-3)
    of[NAMES.index(name)] *= np.linspace(0.3, 1.1, len(ROW_BYTES))
    takes = [
        np.array([Table("model", NAMES, of, np.full(SHAPE, error)).choose(SUM, b).name == name
                  for b in ROW_BYTES])
        for error in (less, more)
    ]  # fmt: skip
    assert (takes[0] >= takes[1]).all()
    assert takes[1][0]


# Who says so -------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose", CHOOSE)
@pytest.mark.parametrize("given", [True, False])
def test_a_hag_chooses_as_it_is_told(
    choose: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAG_PLUGIN_CHOOSE", "hag" if given else choose)
    hag = hp.build_hag(communities(), num_nodes=1200, choose=choose if given else None)
    choice = hag.choice(64)
    if choose in ("hag", "plain"):
        assert (choice.name, choice.by, dict(choice.seconds)) == (choose, choose, {})
    else:
        assert choice.by in (choose, "model")
        assert set(choice.seconds) == set(NAMES)
        assert choice.seconds[choice.name] <= min(choice.seconds.values()) / 0.95
    assert hag.stats().choice == choice
    with count_programs() as ran:
        hp.aggregate(torch.ones(1200, 64), hag)
    assert ran.programs[0].program is hag.candidates()[choice.name]


def test_plain_searches_nothing() -> None:
    hag = hp.build_hag(communities(), num_nodes=1200, choose="plain")
    assert hag.program().is_plain
    assert set(hag.candidates()) == {PLAIN}
    assert str(hag.choice(64)) == "plain by plain"


def test_where_nothing_pays_the_search_has_chosen() -> None:
    hag = hp.build_hag(torch.arange(20).view(2, 10), choose="measure")
    assert (hag.choice(64).name, hag.choice(64).by) == (PLAIN, "search")


def test_greedy_runs_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAG_PLUGIN_CHOOSE", "model")
    assert hp.build_hag(communities(), method="greedy").choice(1).name == SHARED
    assert hp.build_hag(communities(), method="greedy", choose="model").choice(1).by == "model"


@pytest.mark.parametrize("value", ["fastest", "HAG", "plain,hag"])
def test_what_is_no_way_to_choose_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"choose is '{value}'; expected one of"):
        hp.build_hag(communities(), choose=value)
    monkeypatch.setenv("HAG_PLUGIN_CHOOSE", value)
    with pytest.raises(ValueError, match=f"HAG_PLUGIN_CHOOSE is '{value}'; expected one of"):
        hp.build_hag(communities())


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def distributed() -> Iterator[None]:
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mode", ["deterministic", "distributed"])
def test_no_clock_decides_where_others_must_decide_alike(
    mode: str, request: pytest.FixtureRequest
) -> None:
    with limits(**TIMED):
        assert hp.build_hag(communities(), choose="measure").choice(64).by == "measure"
        request.getfixturevalue(mode)
        hag = hp.build_hag(communities(), choose="measure")
    model = hp.build_hag(communities(), choose="model")
    assert [hag.choice(w) for w in WIDTHS] == [model.choice(w) for w in WIDTHS]


# It stays ----------------------------------------------------------------------------------------


def saved(hag: hp.HAG, folder: Path) -> hp.HAG:
    hag.save(folder / "hag.npz")
    return hp.HAG.load(folder / "hag.npz")


def pickled(hag: hp.HAG, folder: Path) -> hp.HAG:
    file = io.BytesIO()
    torch.save(hag, file)
    file.seek(0)
    loaded: hp.HAG = torch.load(file)
    return loaded


@pytest.mark.parametrize("copy", [saved, pickled])
@pytest.mark.parametrize("choose", CHOOSE)
def test_the_choice_travels(
    copy: Any, choose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a machine with other constants, too; both directions, all modes."""
    edges = communities()
    with limits(**TIMED):
        hag = hp.build_hag(
            edges[:, edges[0] < 900], num_nodes=1200, self_loops=SELF_LOOPS, choose=choose
        )
        hag.transpose().program("add")
    requests = list(itertools.product(WIDTHS, DTYPES, SELF_LOOPS))
    before = [hag.choice(*r) for r in requests] + [hag.transpose().choice(*r) for r in requests]
    foreign = Constants(op=1e-7, near=RowCost(1e-12, 1e-14))
    constants.write_constants(tmp_path / "costs.json", foreign, {})
    monkeypatch.setenv("HAG_PLUGIN_COSTS", str(tmp_path / "costs.json"))
    monkeypatch.setenv("HAG_PLUGIN_CHOOSE", "plain")
    loaded = copy(hag, tmp_path)
    after = [loaded.choice(*r) for r in requests]
    assert before == after + [loaded.transpose().choice(*r) for r in requests]


def table_state(names: Any, fill: Any = 1.0, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    seconds, error = np.full((len(names), *shape), fill), np.full(SHAPE, 0.1)
    return {"by": "model", "names": list(names), "seconds": seconds.tolist(),
            "error": error.tolist()}  # fmt: skip


BOTH = (PLAIN, SHARED)
BAD_TABLES: dict[str, Any] = {
    "by nobody": {**table_state(BOTH), "by": "me"},
    "of nothing": table_state(()),
    "without the plain program": table_state((SHARED,)),
    "without the HAG's": table_state((PLAIN, REORDERED)),
    "a name twice": table_state((PLAIN, SHARED, SHARED)),
    "no numbers": table_state(BOTH, "1"),
    "too few": table_state(BOTH, shape=(4, 7)),
    "ragged": {**table_state(BOTH), "seconds": [[1.0], [1.0, 2.0]]},
    "of before": {"by": "model", "seconds": {PLAIN: [1.0] * 8, SHARED: [1.0] * 8}},
    "unknown candidate": table_state((PLAIN, SHARED, "best")),
    "not finite": table_state(BOTH, float("nan")),
    "negative": table_state(BOTH, -1.0),
    "an error of another kind": {**table_state(BOTH), "error": "0.1"},
    "an error for all": {**table_state(BOTH), "error": 0.1},
    "an error below 0": {**table_state(BOTH), "error": np.full(SHAPE, -0.1).tolist()},
    "another kind": [1, 2],
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_a_damaged_table_is_refused(hag: hp.HAG, bad: str) -> None:
    state = hag._state()
    state["programs"][0]["table"] = BAD_TABLES[bad]
    with pytest.raises((ValueError, TypeError, KeyError)):
        hp.rebuild_hag(state)


@pytest.mark.parametrize("option", ["method", "choose"])
def test_options_that_there_are_not_are_refused(hag: hp.HAG, option: str) -> None:
    state = hag._state()
    state["options"][option] = "best"
    with pytest.raises(ValueError, match=r"'best'.*; expected one of"):
        hp.rebuild_hag(state)


def test_a_choice_says_where_it_is_not_the_fastest() -> None:
    seconds = {PLAIN: 1e-3, SHARED: 0.97e-3}
    assert str(Choice(PLAIN, "model", seconds)).endswith("plain 1 ms, too near to tell")
    assert str(Choice(SHARED, "model", seconds)).endswith("plain 1 ms")


def test_states_from_before_there_was_a_choice_run_their_program(hag: hp.HAG) -> None:
    state = hag._state()
    del state["options"]["choose"]
    for entry in state["programs"]:
        del entry["table"]
    assert hp.rebuild_hag(state).choice(8).name == SHARED


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=6), st.sampled_from(WIDTHS))
@settings(max_examples=30)
def test_a_batch_adds_up_its_parts(kinds: list[int], width: int) -> None:
    """Parts that share nothing take as long in both, and there is one call; a copy of the batch
    chooses alike."""
    parts = []
    for kind in kinds:
        clique = torch.combinations(torch.arange(10 + 5 * kind)).T
        edges = torch.cat([clique, clique.flip(0)], 1) if kind else clique[:, :9]
        parts.append(hp.build_hag(edges, num_nodes=10 + 5 * kind, choose="model"))
    tables = [
        p._tables[False, False].choose(SUM, 4 * width) for p in parts if not p.program().is_plain
    ]
    batch = hp.batch(parts)
    choice = batch.choice(width)
    if not tables:
        assert choice.name == PLAIN
        return
    call = constants.in_force().call
    for name in (PLAIN, SHARED):
        expected = call + sum(t.seconds[name] - call for t in tables)
        assert choice.seconds[name] == pytest.approx(expected)
    again = hp.rebuild_hag(batch._state())
    assert again.choice(width) == choice
    x = torch.randn(batch.num_src, width)
    torch.testing.assert_close(hp.aggregate(x, batch), hp.aggregate(x, again))


@pytest.mark.parametrize("at", [None, *range(len(ROW_BYTES))])
def test_what_ran_is_known_of_a_batch_as_of_its_parts(hag: hp.HAG, at: int | None) -> None:
    """Before anything ran: only where all widths run the same, however often it is asked."""
    told = with_table(hag, PLAIN, at)
    whole = hp.batch([told, told])
    whole.program()
    assert told.ran(False, False) == told.ran(False, False)
    for _ in range(2):
        ran = whole.ran(False, False)
        assert (ran is None) == (told.ran(False, False) is None) == (at is not None)
        assert ran is None or ran.program is whole.candidates()[PLAIN]


# Samples -----------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(SELF_LOOPS),
    st.booleans(),
    st.sampled_from([(40, 40), (60, 40), (40, 60)]),
)
@settings(max_examples=80)
def test_parts_of_a_plain_program_compute_their_rows(
    seed: int, mode: SelfLoops, idempotent: bool, size: tuple[int, int]
) -> None:
    """Square, with more sources than targets, and its reverse, where some targets have no loop."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(40, (2, 300), generator=generator)
    if size[0] >= size[1]:
        hag = hp.build_hag(edges, size=size, method="none", targets_first=size[0] > size[1])
    else:
        reverse = hp.build_hag(edges, size=size[::-1], method="none", targets_first=True)
        hag = reverse.transpose()
    rows = torch.randperm(size[1], generator=generator)[:25].int().numpy()
    part = samples.plain_part(hag, mode, idempotent, rows)
    assert int(part.source.max()) < size[0]
    op_ptr, source, target = part.numpy()[1:4]
    whole = hag.plain_program(mode, idempotent=idempotent).numpy()
    for op, row in enumerate(target):
        at = np.flatnonzero(whole[3] == rows[row])[0]
        expected = whole[2][whole[1][at] : whole[1][at + 1]]
        assert np.array_equal(source[op_ptr[op] : op_ptr[op + 1]], expected)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 1.0])
def test_parts_of_a_searched_program_compute_their_rows(hag: hp.HAG, share: float) -> None:
    program = hag.program()
    part, rows = samples.stretches_of_tiles(program, share)
    x = torch.randint(-4, 5, (1200, 16)).float()
    y = np.full((len(rows), 16), np.nan, np.float32)
    part.native.run(
        x.data_ptr(), y.ctypes.data, 1, 16, 16, 0, 1200, len(rows),
        *TIMED_AS[SUM], 0, 0, 1,
    )  # fmt: skip
    assert np.array_equal(y, hp.aggregate(x, hag).numpy()[rows])
    assert len(rows) > 0
    assert len(rows) < 1200 or share > 0.3


@given(st.integers(5, 30), st.integers(0, 60), st.sampled_from([False, "add"]))
@settings(max_examples=40)
def test_small_graphs_are_counted_without_their_plain_program(
    size: int, others: int, mode: SelfLoops
) -> None:
    clique = torch.combinations(torch.arange(size)).T
    noise = torch.randint(size + 5, (2, others))
    hag = hp.build_hag(torch.cat([clique, clique.flip(0), noise], 1), num_nodes=size + 5)
    found = hag.program(mode)
    if found.is_plain:
        return
    works = seconds._works_in_one_tile(hag, mode, False, search.Found(found, None, 0.0))
    whole = {name: Work.of(program) for name, program in hag.candidates(mode).items()}
    assert works == {name: (work, 1.0) for name, work in whole.items()}


@given(st.lists(st.integers(0, 10_000), min_size=6, max_size=6), st.floats(1.0, 9.0))
def test_seconds_of_works_are_those_of_each(counts: list[int], scale: float) -> None:
    """In the cache or beyond it."""
    work, c = Work(*counts), DEFAULT
    found = seconds._seconds({PLAIN: (work, scale), SHARED: (work, 1.0)}, c)
    for kind, arithmetic in enumerate(ARITHMETICS):
        for at, row_bytes in enumerate(ROW_BYTES):
            expected = work.seconds(row_bytes, constants=c, arithmetic=arithmetic)
            assert found[SHARED][kind, at] == pytest.approx(expected)
            whole = c.call + (expected - c.call) * scale
            assert found[PLAIN][kind, at] == pytest.approx(whole)


POINTS = st.sampled_from([(a, row_bytes) for a in ARITHMETICS for row_bytes in ROW_BYTES])


def wrong_about(
    names: tuple[str, ...], wrong: dict[seconds.Point, float], spread: float = 0.4
) -> seconds.Wrong:
    """What is known after points took so many times what the model said, for the last name."""
    model = np.linspace(1.0, 9.0, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    known = seconds.Wrong(dict.fromkeys(names, model), spread)
    for point, times in wrong.items():
        at = seconds.POINTS.index(point)
        known.learn(at, {n: model.flat[at] * (times if n == names[-1] else 1.0) for n in names})
    return known


@given(st.dictionaries(POINTS, st.floats(0.3, 3.0), min_size=1, max_size=7), st.floats(0.1, 1.0))
def test_what_was_timed_corrects_the_model(
    wrong: dict[seconds.Point, float], spread: float
) -> None:
    """By the mean of a Gaussian process, as its textbook formula gives it for each entry; and its
    standard deviation."""
    points = list(wrong)
    known = wrong_about((PLAIN,), wrong, spread)
    found, error = known.corrected()[PLAIN], known.error()
    alike = spread**2 * np.array([[like(p, q) for p in points] for q in points])
    inverse = np.linalg.inv(alike + seconds.SPREAD_OF_TIMING**2 * np.eye(len(points)))
    logs = np.log([wrong[point] for point in points])
    for at, point in enumerate(seconds.POINTS):
        row = spread**2 * np.array([like(point, q) for q in points])
        expected = known.predicted[PLAIN].flat[at] * np.exp(row @ inverse @ logs)
        assert found.flat[at] == pytest.approx(expected)
        assert error.flat[at] ** 2 == pytest.approx(spread**2 - row @ inverse @ row)


def like(p: seconds.Point, q: seconds.Point) -> float:
    alike = seconds.ALIKE ** (p[0].is_half != q[0].is_half)
    alike *= seconds.OTHER_CODE ** (p[0].is_extremum != q[0].is_extremum)
    return alike * seconds.FADES ** abs(math.log2(p[1] / q[1]))  # type: ignore[no-any-return]


def test_what_was_timed_corrects_what_is_like_it() -> None:
    """A point is nearly as timed; the less alike another one is, the more it is as predicted."""
    known = wrong_about((PLAIN, SHARED), {(SUM, 32): 4.0})
    model, found = known.predicted[SHARED], known.corrected()
    assert np.array_equal(found[PLAIN], model)
    sums, halves, extrema, both = (
        found[SHARED][ARITHMETICS.index(a)] / model[ARITHMETICS.index(a)]
        for a in (SUM, HALF_SUM, EXTREMUM, HALF_EXTREMUM)
    )
    assert 3.5 < sums[0] < 4.0
    assert np.all(np.diff(sums) < 0)
    assert 1.0 < sums[-1] < 1.1
    assert np.all(sums > halves)
    assert np.all(halves > extrema)
    assert np.all(extrema > both)
    assert np.all(both > 1.0)


@given(
    st.dictionaries(POINTS, st.floats(0.5, 2.0), max_size=4),
    st.sampled_from([(PLAIN, SHARED), (PLAIN, REORDERED, SHARED)]),
)
@settings(max_examples=25)
def test_what_a_timing_is_worth(wrong: dict[seconds.Point, float], names: tuple[str, ...]) -> None:
    """What it is expected to save: the integral over all that it may show."""
    known = wrong_about(names, wrong)
    found = known.worth()
    logs = {name: np.log(of).ravel() for name, of in known.corrected().items()}
    ahead = logs[SHARED] - np.min([logs[n] for n in names if n != SHARED], axis=0)
    expected = save(known, ahead, 1.0)
    if REORDERED in names:
        expected += save(known, logs[REORDERED] - logs[PLAIN], seconds.ORDER_SHARE)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=1e-5)
    assert (found >= 0.0).all()


def save(known: seconds.Wrong, ahead: np.ndarray, share: float) -> np.ndarray:
    """The mean loss of choosing now, less that of choosing after a timing at each point."""
    shown = np.linspace(-6.0, 6.0, 1201)
    weight = np.exp(-(shown**2) / 2) / math.sqrt(2 * math.pi) * (shown[1] - shown[0])
    variance = np.diagonal(known.covariance) + seconds.SPREAD_OF_TIMING**2
    moves = share * known.covariance / np.sqrt(variance)
    after = ahead[:, None, None] + moves[..., None] * shown
    lost = np.maximum(0.0, np.where(ahead[:, None, None] > 0, -after, after))
    return np.asarray((lost * weight).sum(axis=-1).mean(axis=0))


def test_near_ties_are_timed_first() -> None:
    """Where it is known who wins, a timing is worth nothing."""
    model = np.full(SHAPE, 1e-3)
    other = np.full(SHAPE, 1e-4)
    other[ARITHMETICS.index(EXTREMUM), 3] = 1e-3
    known = seconds.Wrong({PLAIN: model, SHARED: other}, 0.3)
    at = int(np.argmax(known.worth()))
    assert seconds.POINTS[at] == (EXTREMUM, ROW_BYTES[3])
    assert seconds.Wrong({PLAIN: model, SHARED: model / 100}, 0.3).worth().max() < seconds.LITTLE


# The time that choosing takes --------------------------------------------------------------------


@pytest.mark.parametrize("search", [0.0, 1e-4, 4e-3, 0.02, 0.1, 1.0, 100.0])
def test_choosing_takes_a_share_of_the_search(search: float) -> None:
    budget = seconds.seconds_to_choose(search)
    assert budget <= max(0.05 * search, min(0.02, 0.25 * search))
    assert budget >= 0.045 * search


@pytest.mark.parametrize("tick", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("budget", [1e-6, 3e-3, 20e-3, 1.0])
def test_what_is_timed_stays_in_its_time(hag: hp.HAG, budget: float, tick: float) -> None:
    """However slow the machine is: what was begun when the time was over ends with its point."""
    program, whole, clock = hag.program(), hag.candidates(), Clock(tick)
    found = search.Found(program, samples.order_of(program), 0.0)
    table = seconds.table_of(hag, False, False, found, whole.__getitem__, budget, clock)
    looks = 2 * len(NAMES)  # of a sweep, before and after each run
    point = 1 + seconds.SWEEPS * looks
    assert clock.now <= budget + tick * (4 + looks + point)
    if budget == 1e-6:
        assert table.by == "model"
        assert clock.now == pytest.approx(4 * tick)  # nothing was run
    if budget == 1.0:
        assert table.by == "measure"
        assert clock.now > tick * point


@pytest.mark.parametrize("mode", SELF_LOOPS)
@pytest.mark.parametrize("reads", [3_000, 20_000, 1 << 30])
def test_samples_stand_for_the_whole(hag: hp.HAG, mode: SelfLoops, reads: int) -> None:
    """What the samples read, scaled, is what the whole reads, up to the difference of rows."""
    whole = hag.candidates(mode)
    program = hag.program(mode)
    found = search.Found(program, samples.order_of(program), 0.0)
    parts = samples.samples_of(hag, mode, False, found, whole.__getitem__, reads)
    assert set(parts) == set(whole) == set(NAMES)
    for name, program in whole.items():
        sample = parts[name]
        assert sample.scale * len(sample.program.source) == pytest.approx(
            len(program.source), rel=0.25 if sample.scale > 1 else 0
        )


@given(st.lists(st.integers(0, 9), max_size=40), st.floats(0.0, 1.0))
def test_a_sample_passes_over_pieces_with_little_work(work: list[int], share: float) -> None:
    """About the share that is asked for of the others, one at least, each once."""
    taken = samples._spread(np.array(work, dtype=np.int64), share)
    others = [at for at, each in enumerate(work) if 4 * each >= np.mean(work)]
    assert len(taken) == min(max(1, round(share * len(others))), len(others))
    assert set(taken.tolist()) <= set(others)
    assert np.all(np.diff(taken) > 0)


@pytest.mark.parametrize("reads", [1, 300, 3_000])
def test_nodes_without_edges_stand_for_no_others(reads: int) -> None:
    """Tiles of them are the first that a search of these graphs makes, and the last."""
    nodes = 4000
    hag = hp.build_hag(communities() + 1400, num_nodes=nodes, choose="model")
    found = search.Found(hag.program(), samples.order_of(hag.program()), 0.0)
    parts = samples.samples_of(hag, False, False, found, hag.candidates().__getitem__, reads)
    for name, part in parts.items():
        read = len(part.program.source)
        assert read > 100
        assert part.scale * read == pytest.approx(len(hag.candidates()[name].source), rel=0.5)


def test_a_graph_of_hubs_alone_has_a_table() -> None:
    star = torch.stack([torch.arange(1, 9000), torch.zeros(8999, dtype=torch.int64)])
    clique = torch.combinations(torch.arange(40)).T
    edges = torch.cat([star, star.flip(0), clique, clique.flip(0)], 1)
    with limits(sampled_reads=100, **TIMED):
        hag = hp.build_hag(edges, choose="measure", allow_subtraction=True)
        x = torch.randint(-4, 5, (9000, 8)).double()
        plain = hp.build_hag(edges, method="none")
        assert torch.equal(hp.aggregate(x, hag), hp.aggregate(x, plain))


@pytest.mark.parametrize("reads", [2000, 1 << 30], ids=["samples", "the whole"])
def test_what_subtracts_is_timed_on_sums_alone(reads: int) -> None:
    """A program for A by (A + I) x - x has no maximum."""
    edges, nodes = communities(size=6), 1200
    with limits(**TIMED, sampled_reads=reads):
        hag = hp.build_hag(edges, choose="measure", allow_subtraction=True)
        assert hag.program().diagonal == -1
        x = torch.randint(-4, 5, (nodes, 8)).double()
        plain = hp.build_hag(edges, method="none")
        for reduce in ("sum", "max"):
            found, expected = (hp.aggregate(x, each, reduce) for each in (hag, plain))
            assert torch.equal(found, expected)
    assert hag.choice(64).by == "measure"


def test_what_is_timed_is_bounded(hag: hp.HAG) -> None:
    """Where the features would take more memory than samples may, the model decides."""
    with limits(**TIMED, sampled_bytes=0):
        assert hp.build_hag(communities(), choose="measure").choice(64).by == "model"


@pytest.mark.parametrize("seed", range(3))
def test_a_measured_hag_is_right(seed: int) -> None:
    """On small samples and on the whole; what it chose by the clock changes no result."""
    edges = communities(seed=seed)
    x = torch.randint(-4, 5, (1200, 24)).double()
    expected = hp.aggregate(x, hp.build_hag(edges, num_nodes=1200, method="none"))
    for reads in (5_000, 1 << 30):
        with limits(**TIMED, sampled_reads=reads):
            hag = hp.build_hag(edges, num_nodes=1200, choose="measure")
        assert torch.equal(hp.aggregate(x, hag), expected)
        hag.check(edges)
