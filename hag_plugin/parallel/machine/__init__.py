"""Machines: devices, the links that join them, and how long collectives take there.

From the ground up: `levels`, a tree of groups and links; `collectives`, a model for each algorithm;
`topology`, a whole machine; `probe`, which measures one. Nothing here knows of models or plans. A
new machine is a file in `presets`; a new algorithm an entry of `collectives.COLLECTIVES`.
"""
