"""Layer-wise parallelism: how to split each layer of a model over devices."""
