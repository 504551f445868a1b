"""Lifecycles as tables. An illegal move raises with the object's history; the diagrams in docs/ are generated
from these tables (`python -m instainfer.core.lifecycle`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

Table = Mapping[tuple[str, str], str]

#: Whether a container is idle is not a state of its own: it is idle when no instance in it loads or runs.
CONTAINER: Table = {
    ("creating", "ready"): "ready",
    ("creating", "lost"): "gone",
    ("ready", "destroy"): "destroying",
    ("ready", "lost"): "gone",
    ("destroying", "lost"): "gone",
}

#: Being frozen is orthogonal: a frozen instance keeps its state.
INSTANCE: Table = {
    ("loading", "imported"): "imported",
    ("loading", "loaded"): "ready",
    ("imported", "raise"): "loading",
    ("ready", "dispatch"): "running",
    ("running", "dispatch"): "running",  # concurrency > 1
    ("running", "rest"): "ready",
    ("loading", "offload"): "ending",
    ("imported", "offload"): "ending",
    ("ready", "offload"): "ending",
    ("loading", "failed"): "gone",
    ("loading", "lost"): "gone",
    ("imported", "lost"): "gone",
    ("ready", "lost"): "gone",
    ("running", "lost"): "gone",
    ("ending", "lost"): "gone",
    ("ending", "failed"): "gone",  # it failed while the command to end it was on its way
    ("ending", "imported"): "ending",  # likewise: it became ready just before
    ("ending", "loaded"): "ending",
}

#: A zygote is used by forking it, which is no state of its own: what it forked does not depend on it.
ZYGOTE: Table = {
    ("starting", "ready"): "ready",
    ("starting", "end"): "ending",
    ("ready", "end"): "ending",
    ("starting", "lost"): "gone",
    ("ready", "lost"): "gone",
    ("ending", "lost"): "gone",
    ("ending", "ready"): "ending",  # it became ready while the command to end it was on its way
}

LIFECYCLES: Mapping[str, tuple[str, Table]] = {
    "container": ("creating", CONTAINER),
    "instance": ("loading", INSTANCE),
    "zygote": ("starting", ZYGOTE),
}


class IllegalTransition(RuntimeError):
    """A fault of the core or of an agent: says who, in which state, what was asked, and what came before."""


class Lifecycle:
    """A state and how it came about. `history` keeps the last 16 moves as (move, now)."""

    __slots__ = ("history", "state", "table", "who")

    def __init__(self, who: str, kind: str, now: float) -> None:
        self.who = who
        self.state, self.table = LIFECYCLES[kind]
        self.history: deque[tuple[str, float]] = deque([("created", now)], maxlen=16)

    def move(self, move: str, now: float) -> None:
        try:
            self.state = self.table[self.state, move]
        except KeyError:
            past = ", ".join(f"{name} at {at:.3f}" for name, at in self.history)
            raise IllegalTransition(
                f"{self.who} is {self.state!r}: {move!r} is not possible at {now:.3f}; before: {past}"
            ) from None
        self.history.append((move, now))


def mermaid(kind: str) -> str:
    """The table as a Mermaid state diagram."""
    initial, table = LIFECYCLES[kind]
    lines = ["stateDiagram-v2", f"    [*] --> {initial}"]
    lines += [f"    {source} --> {target}: {move}" for (source, move), target in table.items()]
    ends = {target for target in table.values() if all(source != target for source, _ in table)}
    lines += [f"    {end} --> [*]" for end in sorted(ends)]
    return "\n".join(lines)


def document() -> str:
    """docs/lifecycles.md, whole."""
    parts = [
        "# Lifecycles",
        "",
        "Generated from `src/instainfer/core/lifecycle.py` by `make docs`; a test checks that it is up to date.",
    ]
    for kind in LIFECYCLES:
        parts += ["", f"## {kind.capitalize()}", "", "```mermaid", mermaid(kind), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(document(), end="")
