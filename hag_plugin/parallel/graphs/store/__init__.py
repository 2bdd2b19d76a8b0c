"""Graphs cut into parts, on disk: a folder for each part, and a manifest of all.

`write` makes a store from streams (`streams`) in bounded memory: edges are sorted on disk
(`sorting`) and nodes assigned (`assign`; out of core by `fennel`). `partitioned_data` opens one
part and no other. What a file of a part is, and how it is checked, is told in `part_files`; the
counts of all parts and the fingerprints of all files in `manifest`; what a rank has of the edges of
several parts, in `block`. Nothing here knows what files a graph came from: those who do
(`hag_plugin.data`) hand over an `EdgeStream`.
"""
