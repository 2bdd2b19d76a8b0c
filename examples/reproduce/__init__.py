"""The papers' figures and tables, a script each; `python -m examples.reproduce` runs them all."""
