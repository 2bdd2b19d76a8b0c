"""What people look at: a simulated step as a trace for a viewer, and as a picture.

A new report is a file here that takes a `simulation.simulator.Schedule` or a plan and writes
through `hag_plugin.files.write_whole`; nothing in parallel imports this room.
"""
