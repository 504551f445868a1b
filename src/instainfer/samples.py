"""Where the example functions are: in the installed package, or in the checkout that it runs from."""

from __future__ import annotations

from pathlib import Path

from instainfer.errors import NotFound


def example(name: str) -> Path:
    """The folder of an example function. Raises NotFound."""
    here = Path(__file__).resolve().parent
    for root in (here / "_examples", here.parent.parent / "examples"):
        if (root / name).is_dir():
            return root / name
    raise NotFound(f"there is no example {name!r} beside this installation", hint="run it from a checkout")
