"""Invocation traces: who was called when. `base.py` has the noun, `open.py` recognises a path, `generate.py` makes
traces whose hazards are known, `classes.py` sorts functions by how regular they are and draws replay sets.

Times are seconds from a trace's start. Nothing here knows what a function costs: see `lab/costs.py`.
"""
