"""The layers of a model: what `accelerate` does to them, what their calls run on, and `explain`.

`swap` makes the classes that accelerated layers get, `decorator` those of users, `session` knows
which tensors came back, and `settle` alone decides what a call runs on, and says why, of layers
that score their edges in `settle_scores`; `calls` counts what became of it. Whatever a decision
depends on is asked there, of `facts`, so that `explain` tells what happens; `choice` has what it
says. How a layer aggregates is no matter of this room: that is its recipe.
"""
