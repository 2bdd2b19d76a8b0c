"""Torch's transforms, each as a function of a function, a point and a direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd import functional as older

Function = Callable[[Tensor], Tensor]


def jvp(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.func.jvp(f, (x,), (v,))[1]


def dual(f: Function, x: Tensor, v: Tensor) -> Any:
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v)))
        return torch.zeros_like(y.primal) if y.tangent is None else y.tangent


def vjp(f: Function, x: Tensor, v: Tensor) -> Any:
    y, back = torch.func.vjp(f, x)
    return back(y.detach().cos())[0]


def batched(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.vmap(f, in_dims=1)(torch.stack([x, v], dim=1))


def batched_gradients(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.vmap(torch.func.grad(lambda x: f(x).pow(3).sum()))(torch.stack([x, v]))


def linearised(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.func.linearize(f, x)[1](v)


# Of a function of a curve, so that there are tangents of tangents on the way in, too.


def curved(f: Function) -> Function:
    return lambda x: f(x + x.pow(3)).pow(3)


def forward_over_reverse(f: Function, x: Tensor, v: Tensor) -> Any:
    return jvp(torch.func.grad(lambda x: curved(f)(x).sum()), x, v)


def reverse_over_forward(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.func.grad(lambda x: jvp(curved(f), x, v).sum())(x)


def forward_over_forward(f: Function, x: Tensor, v: Tensor) -> Any:
    return jvp(lambda x: jvp(curved(f), x, v.cos()), x, v)


def gradients_of_many(f: Function, x: Tensor, v: Tensor) -> Any:
    x = x.clone().requires_grad_()
    y = f(x)
    weights = torch.stack([y.detach().cos(), y.detach().sin()])
    return torch.autograd.grad(y, x, weights, is_grads_batched=True)[0]


def jacobian(f: Function, x: Tensor, v: Tensor) -> Any:
    return older.jacobian(f, x, vectorize=True)


def forward_jacobian(f: Function, x: Tensor, v: Tensor) -> Any:
    return older.jacobian(f, x, vectorize=True, strategy="forward-mode")


def jacrev(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.func.jacrev(f)(x)


def jacfwd(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.func.jacfwd(f)(x)


def hessian(f: Function, x: Tensor, v: Tensor) -> Any:
    return torch.func.hessian(lambda x: f(x).pow(3).sum())(x)


FIRST = (jvp, dual, linearised, vjp, batched, gradients_of_many)
SECOND = (batched_gradients, forward_over_reverse, reverse_over_forward, forward_over_forward)
WHOLE = (jacobian, forward_jacobian, jacrev, jacfwd, hessian)
EVERY = (*FIRST, *SECOND, *WHOLE)
