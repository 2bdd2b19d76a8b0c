"""How each layer aggregates: the table of recipes, what their parts are, and what runs them.

To add a layer of PyG's: one line in `table.RECIPES`, with conditions where not every setting of it
is served; a function in `forwards` only where the layer looks into its edges, in `reorder` where
multiplying first is cheaper. tests/pyg/recipes/test_table.py needs a configuration of it, and
docs/ the page of layers anew.
"""
