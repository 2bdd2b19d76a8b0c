"""Graphs cut over devices: which nodes go where, and what each way of cutting costs in counts.

Edges and numbers of nodes only: nothing here knows of models or machines. A new way of assigning
nodes is a method of `partition.METHODS`; what the planner has to know of a cut is counted in
`stats`.
"""
