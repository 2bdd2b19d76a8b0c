"""The part of a graph that one rank aggregates over, in local numbers, and what it is sent.

`graph_parts` says what a part is, `local_graphs` cuts it. A new way of fetching rows is a method of
`local_graphs.RankGraphs` that returns a part and who sends what. Nothing there sends anything; in
`stored_graphs`, ranks that have a part of a store each tell each other what the others need.
"""
