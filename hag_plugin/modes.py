"""The modes that a caller may be in, who looks on, and the way out of these for what is kept beyond
a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

Array = np.ndarray[Any, Any]
P = ParamSpec("P")
T = TypeVar("T")


def has_ranks() -> bool:
    """Whether this process is one of several of a distributed job, which must decide alike."""
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """A function that no compiler traces, nor what it calls: where it stands, code is compiled in
    two parts. For what is given sparse tensors, whose layouts the compiler does not have."""
    disable: Any = torch.compiler.disable
    made: Callable[P, T] = disable(function)
    return made


# Of autograd's hooks on what it saves, those in force (None: there are none); from torch 2.8 on.
top_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks


def has_hooks(module: Any) -> bool:
    """Whether anybody looks on when a module is called."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )


def outside_inference() -> AbstractContextManager[Any]:
    """For what is kept beyond a call: made of plain tensors, whatever mode the caller is in.

    Not of inference tensors, nor of the wrappers of `torch.func`'s transforms, forward-mode AD or
    a dispatch mode.
    """
    if torch.compiler.is_compiling() or not (
        torch.is_inference_mode_enabled()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    ):
        return nullcontext()
    return _outside_modes()


@contextmanager
def _outside_modes() -> Iterator[None]:
    with (
        torch.inference_mode(False),
        temporarily_clear_interpreter_stack(),
        forward_ad._set_fwd_grad_enabled(False),
        torch.no_grad(),
        _disable_current_modes(),
    ):
        yield


def in_memory(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in main memory, also of one that a transform has wrapped.

    Raises:
        RuntimeError: there is no one tensor, as in a batch of `torch.vmap`.
    """
    while torch._C._functorch.is_gradtrackingtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with outside_inference():
        return tensor.detach().cpu()


def numpy_of(tensor: Tensor) -> Array:
    """The same as an array."""
    with outside_inference():
        return in_memory(tensor).numpy()
