"""Running a model as its plan says, a rank a device: `parallelize` and what it sets up.

`parallelize` copies the model; `parallel_model` is its `model.parallel`; `runner` sends what the
model does to executors, which work at a `site` with `parameters` that may be split. Data is cut in
`share`. What runs one operation is in `executors`; a rank's part of a graph is in `graphs`.
"""
