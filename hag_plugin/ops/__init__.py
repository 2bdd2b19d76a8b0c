"""The torch operators that run programs on features, with all their derivatives.

`registration.py` says what an operator is; `aggregate.py` and `weighted_sum.py` are the two
families, `gpu.py` what both run on a card. An operator knows graphs and programs, and no layer. To
add one, write an `Operator` record in its family's table; docs/extending.md goes through a reducer.
"""
