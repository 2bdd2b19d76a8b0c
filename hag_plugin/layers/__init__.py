"""What a layer of PyG or DGL is, told once: one record a layer, as data.

`record` says what a record holds, `pyg` and `dgl` hold those of the two libraries, neither of which
is imported; `table` finds them by a class. The recipes of the adapters, the planner's table, its
executors, the benchmark and the pages of layers refer to them. What only one of these needs is no
part of a record. A new layer comes in as a record of `pyg` or `dgl`.
"""
