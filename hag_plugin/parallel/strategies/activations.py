"""What an operation holds: tensors from its forward to its backward pass, and while it runs.

The model of memory, in one place. Tensors are counted, in values, on the device that holds most:

* States: a weight, its gradient and two moments of Adam, all the time.
* Features, in each layout that a layer reads, all the time.
* What autograd keeps from an operation's forward to its backward pass. A function keeps its input
  (a product, BatchNorm), its output (ReLU, softmax), something of its own (a mask of dropout), or
  nothing (a sum over neighbours, a sum, a concatenation, whatever is sent). A tensor is counted
  once where its producer keeps it or its consumer does in the same layout; where several consumers
  keep one that its producer does not, once for each.
* While an operation runs: its input and output, buffers for what is sent, in the backward pass the
  gradients of both; tensors and gradients that wait for another branch of the model. Before that
  operation, later ones have kept nothing yet; after its backward pass they keep nothing any more.

The peak is the largest such sum, which is mostly reached in the backward pass of one of the last
layers. Sizes that an operation holds follow from its steps, the calls of torch that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A call whose result the next one takes. All sizes are in values.

    Attributes:
        made: size of the result.
        keeps: what its backward pass needs, of "input", "output" and "both".
        extra: kept besides.
        forward: held besides while it runs.
        backward: likewise in its backward pass.
        weights: whether it has some: its backward pass runs even if no gradient of its input is
            wanted.
    """

    made: int
    keeps: str = ""
    extra: int = 0
    forward: int = 0
    backward: int = 0
    weights: bool = False


@dataclass(frozen=True)
class Held:
    """What the steps of an operation hold.

    Attributes:
        kept: values between forward and backward, without input; with the output if it is needed.
        input: whether the input is needed.
        output: whether the output is.
        forward: values held while it runs, beside these, the input and the output.
        backward: likewise, beside the gradients of input and output.
    """

    kept: int = 0
    input: bool = False
    output: bool = False
    forward: int = 0
    backward: int = 0


def hold(source: int, steps: Sequence[Step], input_grad: bool = True) -> Held:
    """What steps hold that run one after the other, from an input of `source` values.

    Example:
        >>> hold(10, [Step(20), Step(30, "input", weights=True)])  # a sum, then a product
        Held(kept=20, input=False, output=False, forward=0, backward=10)
    """
    first = 0 if input_grad else next((i for i, s in enumerate(steps) if s.weights), len(steps))
    made = [source, *(s.made for s in steps)]
    needed = [False] * len(made)
    for i, step in enumerate(steps[first:], first):
        needed[i] |= step.keeps in ("input", "both")
        needed[i + 1] |= step.keeps in ("output", "both")
    inside = [0] + [size * need for size, need in zip(made[1:-1], needed[1:-1], strict=True)]
    extra = [step.extra * (i >= first) for i, step in enumerate(steps)]
    kept = sum(inside) + sum(extra) + made[-1] * needed[-1]
    forward = backward = 0
    for i, step in enumerate(steps):
        before = sum(inside[: i + 1]) + sum(extra[: i + 1])
        passing = made[i] if i and not needed[i] else 0
        alive = before + passing + step.made + step.forward
        forward = max(forward, alive - kept - made[-1] * (not needed[-1]))
        if i >= first:
            grads = step.made + (made[i] if i > first or input_grad else 0)
            own = step.made if step.keeps in ("output", "both") else 0
            alive = before + own + grads + step.backward
            ends = made[-1] + source * input_grad
            backward = max(backward, alive - kept - ends)
    return Held(kept, needed[0], needed[-1], forward, backward)
