"""DGL graphs that carry their HAGs: made by `ToHAG`, batched, reversed, copied, moved.

`graph` has the classes, whose `update_all` runs on the HAG; what changes a graph's edges drops its
HAGs. A function of DGL that makes graphs anew, and should keep the HAGs, gets one of its name here
and in `hag_plugin.dgl`. `exchange` takes graphs apart for another framework, or makes them of its.
`graphbolt` is imported before DGL is, and imports nothing of it.
"""
