"""The memory of tensors that come back: what it tells apart, what it never remembers."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import hag_plugin as hp
from hag_plugin.recall import Known, Passing, Recall, checksum, decide

# Writes of another's contents to a tensor. Torch counts the last only.
Write = Callable[[Tensor, Tensor], Any]


def _assign(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other.clone()


WRITES: dict[str, Write] = {
    "numpy": lambda t, o: np.copyto(t.numpy(), o.numpy()),
    "dlpack": lambda t, o: np.copyto(_writeable(t), o.numpy()),
    "torch's dlpack": lambda t, o: torch.from_dlpack(t.__dlpack__()).copy_(o),
    "data": lambda t, o: t.data.copy_(o),
    "data of a slice": lambda t, o: t.data[..., :3].copy_(o[..., :3]),
    "data is another": _assign,
    "set_": lambda t, o: t.set_(o.clone()),
    "storage": lambda t, o: t.untyped_storage().copy_(o.clone().untyped_storage()),
    "swap_tensors": lambda t, o: torch.utils.swap_tensors(t, o.clone()),
    "counted": lambda t, o: t.copy_(o),
}


def _writeable(tensor: Tensor) -> Any:
    array = np.from_dlpack(tensor)
    array.flags.writeable or array.setflags(write=True)
    return array


def sources() -> dict[str, Callable[[Tensor], Tensor]]:
    """Where a tensor's memory can come from."""
    return {
        "torch": torch.clone,
        "numpy": lambda t: torch.from_numpy(t.numpy().copy()),
        "view": lambda t: torch.cat([t, t])[len(t) :],
        "shared": lambda t: t.clone().share_memory_(),
        "transposed": lambda t: t.t().contiguous().t() if t.dim() == 2 else t.clone(),
        "columns": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    }


@pytest.mark.parametrize("source", sources())
@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_seen(write: str, source: str) -> None:
    for shape in ((2, 40), (40,)):
        t = sources()[source](torch.randint(1000, shape))
        if source in ("view", "transposed", "columns") and write == "storage":
            continue  # another's storage is not laid out like this
        known = Known.of((t,))
        assert known is not None
        assert known.holds((t,))
        WRITES[write](t, torch.randint(1000, shape))
        assert not known.holds((t,))


def test_memory_behind_a_tensor_is_compared() -> None:
    memory = shared_memory.SharedMemory(create=True, size=80)
    other = shared_memory.SharedMemory(name=memory.name)
    try:
        mapped = np.ndarray(10, np.int64, memory.buf)
        mapped[:] = 1
        t = torch.from_numpy(mapped)
        known = Known.of((t,))
        assert known is not None
        assert known.holds((t,))
        np.ndarray(10, np.int64, other.buf)[9] = 2  # as another process would
        assert not known.holds((t,))
        del t, mapped
    finally:
        gc.collect()
        other.close()
        memory.close()
        memory.unlink()


def test_tensors_that_are_not_the_same() -> None:
    t = torch.zeros(4, 6)
    known = Known.of((t,))
    assert known is not None
    others = (t[:2], t[2:], t.view(6, 4), t.view(torch.int32), torch.zeros(4, 6), t.clone())
    assert all(not known.holds((other,)) for other in others)
    assert known.holds((t.detach(),))
    z = torch.zeros(3, dtype=torch.complex64)
    imaginary = Known.of((z.imag,))
    assert imaginary is not None
    assert imaginary.holds((z.imag,))
    assert not imaginary.holds((z.conj().imag,))


def never() -> dict[str, Callable[[], Tensor]]:
    """Tensors that cannot be known again."""
    from torch._subclasses import FakeTensorMode

    def fake() -> Tensor:
        with FakeTensorMode():
            return torch.ones(2, 3)

    class Mine(Tensor):
        pass

    return {
        "fake": fake,
        "meta": lambda: torch.ones(2, 3, device="meta"),
        "sparse": lambda: torch.eye(3).to_sparse(),
        "subclass": lambda: torch.ones(2, 3).as_subclass(Mine),
    }


@pytest.mark.parametrize("kind", never())
def test_what_cannot_be_known_again(kind: str) -> None:
    t, memory = never()[kind](), Recall()
    assert Known.of((t,)) is None
    for _ in range(3):
        assert memory.value((t,), "sum", lambda: 1) is None
        memory.put((t,), "sum", 1)
        assert memory.get((t,), "sum") is None
        assert not memory.is_back((t,), "sum")
    assert len(memory) == 0


def test_tensors_made_in_inference_mode() -> None:
    """Nobody counts writes to them: they are known by what they hold, large ones not at all."""
    with torch.inference_mode():
        t = torch.ones(2, 3)
    memory, of_features = Recall(), Recall(features=True)
    found = [memory.value((t,), "", lambda: float(t.sum())) for _ in range(3)]
    assert found == [None, 6.0, 6.0]
    with torch.inference_mode():
        t[0] = 2
    assert [memory.value((t,), "", lambda: float(t.sum())) for _ in range(2)] == [None, 9.0]
    assert [of_features.value((t,), "", lambda: 1) for _ in range(3)] == [None] * 3


def test_what_serves_things_that_pass() -> None:
    memory, box, made = Recall(), [torch.arange(6)], []

    def passing() -> Any:
        made.append(int(box[0][0]))
        return None if len(made) == 1 else len(made)

    def value(occasion: int, make: Any = lambda: "back") -> Any:
        found = memory.value((box[0],), "", make, occasion=occasion, passing=passing)
        return found.value if isinstance(found, Passing) else found

    assert [value(1), value(1), value(1)] == [None, 2, 2]  # asked until it gives something
    box[0].numpy()[0] = 7  # unseen by torch
    assert [value(1), value(1), value(2), value(3)] == [3, 3, "back", "back"]
    assert made == [0, 0, 7]
    box[0][0] = 8
    assert [value(4), value(5, lambda: None), value(6)] == [4, 4, 4]  # nothing is made of it
    box.clear()
    assert len(memory) == 0


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "functionalize"])
def test_tensors_inside_transforms(transform: str) -> None:
    memory = Recall()

    def f(x: Tensor) -> Tensor:
        for _ in range(3):
            assert memory.value((x,), "", lambda: 1) is None
        return x.sum()

    x = torch.ones(2, 3)
    if transform == "jvp":
        torch.func.jvp(f, (x,), (x,))
    else:
        getattr(torch.func, transform)(f)(x)
    assert len(memory) == 0


def test_nothing_refers_to_a_tensor() -> None:
    t, memory = torch.arange(5), Recall()
    memory.put((t,), "", 1)
    assert not weakref.getweakrefs(t)
    torch.utils.swap_tensors(t, torch.arange(5))
    assert memory.get((t,), "") is None


def test_things_go_with_their_memory() -> None:
    memory, t = Recall(), torch.arange(5)
    memory.put((t,), "", "kept")
    view = t[1:]
    del t
    assert list(memory.values()) == ["kept"]
    del view
    assert len(memory) == 0


def test_a_limit_a_copy_and_clear() -> None:
    memory, tensors = Recall(3), [torch.arange(5) for _ in range(5)]
    for t in tensors:
        memory.put((t,), "", id(t))
        memory.get((tensors[0],), "")  # the latest used stay
    assert {memory.get((t,), "") for t in tensors} == {
        None,
        *(id(tensors[i]) for i in (0, 3, 4)),
    }
    for copied in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert len(copied) == 0
        assert copied.limit == 3
    memory.clear()
    assert len(memory) == 0


def test_readers_and_occasions() -> None:
    t, made = torch.arange(5), []

    def make() -> int:
        made.append(1)
        return len(made)

    memory, a, b = Recall(), torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    ask = lambda **how: memory.value((t,), str(sorted(how)), make, **how)  # noqa: E731
    assert [ask() for _ in range(3)] == [None, 1, 1]
    assert [ask(occasion=i) for i in (1, 1, 2, 2)] == [None, None, 2, 2]
    assert [ask(reader=r) for r in (a, b, b, a)] == [None, None, 3, 3]
    steps = [(a, 1), (b, 2), (a, 1), (b, 2), (a, 3)]
    assert [ask(reader=r, occasion=i) for r, i in steps] == [None] * 4 + [4]


def test_a_buffer_that_is_refilled_each_time_is_worth_nothing() -> None:
    buffer, made = np.zeros(50, np.int64), []
    t, memory = torch.from_numpy(buffer), Recall()
    for step in range(10):
        buffer[:] = step
        found = memory.value((t,), "", lambda: made.append(1) or int(t.sum()), occasion=step)
        assert found in (None, 50 * step)
    assert len(made) <= 1


def test_contents_are_compared_at_every_call() -> None:
    t, memory = torch.arange(5), Recall()
    for forward in range(3):
        for _ in range(2):
            memory.value((t,), "", lambda: 1, occasion=forward)
    t.data[0] = 7
    assert memory.value((t,), "", lambda: 1, occasion=2) is None


def test_threads_make_one_value() -> None:
    t, memory, made = torch.arange(5), Recall(), []
    memory.value((t,), "", lambda: None)
    work = lambda: memory.value((t,), "", lambda: made.append(1))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


def test_features_are_compared_where_others_may_write() -> None:
    x, memory = torch.ones(3, 4), Recall(features=True)
    value = lambda: memory.value((x,), "", lambda: float(x.sum()))  # noqa: E731
    assert [value() for _ in range(2)] == [None, 12]
    array = x.numpy()
    assert [value() for _ in range(3)] == [None, 12, 12]
    array[0] = 2
    assert [value() for _ in range(3)] == [None, 16, 16]


# Checksums --------------------------------------------------------------------------------------


@given(
    st.sampled_from([torch.int32, torch.int64, torch.float32, torch.uint8]),
    st.integers(1, 3),
    st.integers(1, 300),
    st.data(),
)
def test_each_element_counts(dtype: torch.dtype, rows: int, columns: int, data: Any) -> None:
    t = torch.randint(100, (rows, columns)).to(dtype)
    before = checksum(t)
    assert before == checksum(t.clone())
    i, j = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    t[i, j] += 1
    assert checksum(t) != before


def test_order_length_and_threads_count() -> None:
    t = torch.arange(200_000)
    assert len({checksum(each) for each in (t, t.flip(0), t[1:], t[:-1], t.view(2, -1).t())}) == 5
    assert len({checksum(torch.zeros(n)) for n in range(200)}) == 200
    assert checksum(torch.empty(0)) == checksum(torch.empty(0))
    threads = torch.get_num_threads()
    try:
        sums = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            sums.add((checksum(t), checksum(t.view(4, -1)[:, 1:])))
        assert len(sums) == 1
    finally:
        torch.set_num_threads(threads)
    swapped = t.clone()
    swapped[[5, 150_000]] = swapped[[150_000, 5]]
    assert checksum(swapped) != checksum(t)


# Decisions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_stop", [True, False])
def test_decisions_are_repeated(early_stop: bool) -> None:
    """Several forwards before their backwards, in both orders, and twice through one graph."""
    taken: list[int] = []

    def take() -> int:
        taken.append(1)
        return len(taken)

    def region(x: Tensor) -> Tensor:
        for _ in range(2):
            for _ in range(decide("how often", take)):
                x = x.sin()
        return x

    x = torch.ones(3, requires_grad=True)
    with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
        outs = [checkpoint(region, x, use_reentrant=False) for _ in range(3)]
    assert len(taken) == 6
    for i in (1, 0, 2, 2):
        outs[i].sum().backward(retain_graph=True)
    assert len(taken) == 6
    assert decide("how often", take) == 7


def test_nested_checkpoints_repeat_theirs() -> None:
    taken: list[int] = []

    def take() -> int:
        taken.append(1)
        return len(taken) % 3 + 1

    def inner(x: Tensor) -> Tensor:
        for _ in range(decide("inner", take)):
            x = x.sin()
        return x

    def outer(x: Tensor) -> Tensor:
        for _ in range(decide("outer", take)):
            x = checkpoint(inner, x, use_reentrant=False).cos()
        return x

    x = torch.ones(3, requires_grad=True)
    outs = [checkpoint(outer, x, use_reentrant=False) for _ in range(3)]
    torch.stack(outs).sum().backward()
    assert x.grad is not None


def test_a_decision_about_something_else_is_not_taken() -> None:
    about = ["first"]

    def region(x: Tensor) -> Tensor:
        assert decide(about[0], lambda: about[0]) == about[0]
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    out = checkpoint(region, x, use_reentrant=False)
    about[0] = "second"
    out.sum().backward()


def test_forget_takes_models() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        hp.forget(3)  # type: ignore[type-var]
