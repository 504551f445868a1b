"""The lodge: what runs inside containers. Standard library only; nothing of the platform is imported.

`manager` runs on the platform's Python (-I -S); `instance`, `styles` and `frames` run on the function's own
Python, 3.9 or newer.
"""
