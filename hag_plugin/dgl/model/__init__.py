"""DGL models and layers: `accelerate`, `restore`, `explain` and `hag_layer`.

`accelerate` gives layers hooks by which plain graphs that come back get their HAGs, as `session`
decides; nothing else of a model is changed. Which layers these are `recipes.table` says.
"""
