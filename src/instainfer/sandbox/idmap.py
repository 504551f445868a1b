"""Which uids and gids a container has: the text of its uid_map and gid_map (user_namespaces(7))."""

from __future__ import annotations

from collections.abc import Iterable

from instainfer.errors import Unavailable

IDS = 65536  # of a container, from its base on
MOST_LINES = 340  # of a map (UID_GID_MAP_MAX_EXTENTS)
MOST_BYTES = 4095  # of the one write that a map takes: less than a page


def mapping(base: int, only: Iterable[int] | None = None) -> str:
    """Inner id n is outer id base + n, for all, or for 0 and `only` these: a process that may set its uid can then
    become no other, and to it the files of others are nobody's. Raises Unavailable for what no map can say."""
    if only is None:
        return f"0 {base} {IDS}"
    wanted = sorted({0, *only})
    for id_ in (wanted[0], wanted[-1]):
        if not 0 <= id_ < IDS:
            raise Unavailable(f"a container has no uid {id_}, only 0 to {IDS - 1}")
    runs: list[range] = []
    for id_ in wanted:
        if runs and runs[-1].stop == id_:
            runs[-1] = range(runs[-1].start, id_ + 1)
        else:
            runs.append(range(id_, id_ + 1))
    text = "\n".join(f"{run.start} {base + run.start} {len(run)}" for run in runs)
    if len(runs) > MOST_LINES or len(text) > MOST_BYTES:
        raise Unavailable(
            f"a container cannot have {len(wanted)} uids in {len(runs)} separate runs: the kernel takes"
            f" {MOST_LINES} lines and {MOST_BYTES} bytes",
            hint="give it fewer, or neighbouring ones",
        )
    return text
