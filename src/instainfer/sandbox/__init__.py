"""Sandboxes: isolated containers made by different means, one contract for all."""
