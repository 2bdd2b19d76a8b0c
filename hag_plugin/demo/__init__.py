"""The demo: one GCN classifier trained twice, stock and accelerated, side by side.

`compare` starts a process for each side and asks both for one epoch in turn; `side` is what such a
process does; `pyg` and `dgl` hold what differs between the frameworks. Another framework is a file
here that has a subclass of `side.Side` and a function `side`, and a line of `side.FRAMEWORKS`.
Its framework is imported in that file alone: the demo of one needs no other.
"""
