"""The command line. One file per noun; what they share is in `session` (options, errors) and `output`.

Starting up must be quick, since people wait for it: rich, httpx and the server are imported by what needs
them, when it needs them.
"""

from __future__ import annotations

from instainfer.cli import (  # noqa: F401 # importing them registers their verbs
    activations,
    cluster,
    deploy,
    functions,
    gateway,
    invoke,
    jobs,
    measure,
    namespace,
    policies,
    ps,
    replay,
    report,
    server,
    simulate,
    top,
    why,
)
from instainfer.cli.session import app, main

__all__ = ["app", "main"]

#: As `--help` lists them: the order in which one meets them.
VERBS = (
    *("serve", "deploy", "invoke", "jobs", "ls", "get", "delete", "logs", "activations", "ps", "top", "why"),
    *("preload", "offload", "hint", "pin", "unpin", "namespace", "status", "policies"),
    *("agent", "cluster", "gateway"),
    *("simulate", "replay", "report", "profile", "demo", "bench", "version"),
)

app.registered_commands.sort(key=lambda verb: VERBS.index(str(verb.name)))
