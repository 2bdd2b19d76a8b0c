"""The search for a plan: what configurations cost in seconds and bytes, and the cheapest choice.

`cost` prices what strategies say; `elimination`, `exact` and `pareto` choose on bare graphs of
costs; `space` makes such a graph of a model on a machine; `plan` is what comes out, with its table
and its file; `planner` is where users come in. A new way of pricing is a `cost.ComputeCost`; a new
plan to compare with is named in `baselines`. `network` is all of that for models without a graph,
on the same choice. Nothing here simulates or runs anything but blocks.
"""
