"""HAGs in PyG's data objects: `HagData`, `ToHAG`, batches, storage, and edges that have changed.

What holds a HAG beside `edge_index`, collates it, stores it, or finds it stale, comes in here. A
way of storing or collating is added where PyG asks for it: in the classes of `graph`, or, where PyG
asks nobody, in `mixed`. `collate` makes the batches of plain graphs, `messages` is how workers hand
them over; `exchange` takes data apart for another framework, or makes it of its graphs.
"""
