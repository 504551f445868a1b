"""What the process of an instance is started with."""

from __future__ import annotations

from pathlib import Path

from instainfer.agent.base import Revision
from instainfer.agent.room import FIRST_UID
from instainfer.agent.snapshots import Snapshots

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def interception(
    revision: Revision, package: Path, snapshots: Snapshots, *, restored: bool = False
) -> dict[str, object]:
    """Options of runtime/intercept.py. A restored instance does not load: there, only threads matter."""
    if not revision.intercept:
        return {}
    kept = snapshots.kept(revision)
    options: dict[str, object] = {
        "onnxruntime": True,
        "threads": revision.threads,
        "cache": "" if kept is None else str(kept),
    }
    if not restored:
        fixed = [str(package), str(Path(revision.python).parent.parent)]
        options |= dict.fromkeys(("torch", "numpy", "joblib"), True)
        options |= {"skip_init": revision.recorded or None, "fixed": fixed}
    return options


def environment(revision: Revision, *, apart: bool) -> dict[str, str]:
    """The variables of an instance: its own over a minimum; nothing of the server's environment leaks in.
    Where functions are kept apart its scratch is a directory that the instance makes for itself, 0700."""
    home = f"/tmp/f{FIRST_UID + revision.number}" if apart else "/tmp"
    bin_directory = str(Path(revision.python).parent)
    return {
        "PATH": f"{bin_directory}:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "",
        # Unpinned threads of co-residents fight for the cores: a 40 ms call became 2 s.
        **dict.fromkeys(THREADS, str(revision.threads)),
        **revision.variables,
    }
