"""Models as graphs of operations: what a model computes, and how one is followed while it runs.

`layers` says of each layer of PyG and DGL which operations it is; `walk` follows a model, and
`recorder` and `trace` write down what is met, as an `opgraph.OpGraph`. Nothing here knows of
strategies. A new layer is its record in `hag_plugin.layers` and an entry of `layers.TABLE`; a new
function between layers is told in `functions`. A model without a graph is followed in `network`.
"""
