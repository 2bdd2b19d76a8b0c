"""What ranks send each other: collectives that count bytes, and shards that move with gradients.

Tensors, groups of ranks and layouts only: nothing here knows of models, graphs or plans. A new
collective is a method of `comm.Group` that counts what it sends as `layouts` does; a new way to
move shards is a map of tensors in `blocks`, with its gradient in `transfer`.
"""
