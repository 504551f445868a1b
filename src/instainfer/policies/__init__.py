"""Policies: a snapshot in, a decision and their own new state out. Pure, one policy a file.

`base.py` has the protocols, `registry.py` the names under which settings find them.
"""
