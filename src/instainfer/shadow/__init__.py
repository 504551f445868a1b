"""Policies that decide on a live server's events beside the one in force, and never act.

`watch` is the server's side, `process` what runs beside it, `follower` the world in which a shadow's decisions
are carried out: the simulator's. `live` counts what became of the requests in truth, in the same terms.
"""
