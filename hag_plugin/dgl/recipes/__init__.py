"""What DGL's layers hand to `update_all`, and how each comes to rows that a HAG aggregates.

`settle` says what one step of message passing runs on, and why; `propagate` obeys it, and `calls`
counts for each layer what its steps ran on. `settle_scores` says it of a call of a layer of
attention, whose forward stands in `attention`. Each of the other files settles one kind of message.
`table` says in words what each layer aggregates, for `explain`.

To add a layer: its record in `hag_plugin.layers.dgl`, which is all if it calls `update_all` with
builtin functions, and `table.OWN` where not every setting of it is served. If it attends, also its
forward in `attention`. If its message is a Python function, also a file here with a `settle` of the
arguments of the others, and a line in `settle.KNOWN`. `tests/dgl/recipes/test_layers.py` and
`test_attention.py` compare what is in their tables with DGL's, and `tests/dgl/model/test_settle.py`
what a layer says of itself with what ran.
"""
