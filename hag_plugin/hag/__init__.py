"""Graphs, the programs that aggregate over them, and the search that makes these.

From the ground: program, graph, rates, candidates (which program runs) <- gpu (schedules of
programs, and how they fill a card) <- cost <- calibration <- constants (the rates of this machine)
<- stats, search, concatenate <- seconds (what the candidates take), graph_set (many small graphs,
kept natively) <- hag <- build. Nothing here knows features or layers: what runs a program is in
`ops`. A new search is a function in `search.py` that makes a `Program` of a `Graph`, and a name
among the methods of `program.py`.
"""
