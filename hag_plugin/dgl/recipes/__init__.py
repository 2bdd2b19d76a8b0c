"""What DGL's layers hand to `update_all`, and how each comes to rows that a HAG aggregates.

`propagate` takes one step of message passing; each of the other files runs one kind of message.
`table` says in words what each layer aggregates, for `explain`.

To add a layer: if it calls `update_all` with builtin functions, a line in `table.RECIPES`. If its
message is a Python function, also a file here with a `run` of the arguments of the others, and a
line in `propagate.KNOWN`; `tests/dgl/recipes/test_layers.py` then compares it with DGL's.
"""
