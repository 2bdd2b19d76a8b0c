"""Aggregation over the sources of each node: PyG's reducers, their statistics, what is kept.

To add a reducer: an entry of `statistics.STATISTICS`, or of `aggregators.REDUCERS` where the
kernels have it. Knows HAGs and features, and of a layer no more than its aggregation module.
"""
