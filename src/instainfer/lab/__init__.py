"""Experiments on traces: what functions cost, how well any policy could do, what policies do."""
