"""Graphs from the outside: built in, generated, PyG's datasets, and files of many kinds.

`datasets.load` takes whatever a user may name and hands out a `GraphData`, checked on the way in. A
file goes up floor by floor: `source` (its bytes, unpacked), `edge_lists` (text) or the readers of
`graph_files`, `edges` (how ids become nodes). A new kind of file is a reader in
`graph_files`, named in `source.KINDS`; a new graph by name is an entry of `datasets.BUILT_IN`.
Nothing here knows the frameworks, but for the function that downloads with PyG's own classes.
"""
