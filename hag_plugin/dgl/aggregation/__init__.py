"""What a HAG computes for one edge type of a DGL graph: rows of its source nodes, aggregated.

`relation` holds the HAG and what is known of the edges; `rows` settles what rows are aggregated on;
`ties` knows how DGL's own kernels break ties in max and min; `choice` says why, in words. Nothing
here knows of layers or of graphs with HAGs. A reducer goes into `rows.REDUCERS` once `aggregate`
has it and gives what DGL does on nodes without edges, NaN and infinities.
"""
