"""How each layer aggregates: the table of recipes, what their parts are, and what runs them.

To add a layer of PyG's: its record in `hag_plugin.layers.pyg`, which is all for most. Where not
every setting of it is served, its recipe in `table.OWN`, with `conditions`; where it looks into its
edges, a function in `forwards` and the recipe beside it. tests/pyg/recipes/test_table.py needs a
configuration of it. `python -m examples.benchmark.layers_page` writes the lists of layers anew.
"""
