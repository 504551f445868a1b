"""What a node's agent is made of, under a machine's settings."""

from __future__ import annotations

import functools

from instainfer import tls
from instainfer.agent.environments import Environments
from instainfer.agent.local import LocalAgent
from instainfer.agent.runners import SandboxRunner
from instainfer.artifacts.cache import Cache
from instainfer.artifacts.open import source
from instainfer.config import Settings
from instainfer.sandbox import probe

ARTIFACTS = "artifacts"  # in the data directory: what other nodes may pull


async def compose(settings: Settings, node: str = "local", *, key: str = "") -> LocalAgent:
    """Not started. `key`: of a node among others, theirs and its own: it pulls from them, and packs what it builds
    for them. Raises BadSettings, and Unavailable where the sandbox that is asked for does not work."""
    data = settings.server.data_dir
    sandbox = await probe.choose(
        settings.sandbox.kind,
        data / "sandbox",
        uid_base=settings.node.uid_base,
        networks=settings.sandbox.networks,
    )
    given = settings.artifacts
    secret = tls.calling(settings.tls)
    sources = [source(text, given.key, secret) for text in given.sources]
    artifacts = Cache(data / ARTIFACTS, given.budget, sources)
    environments = Environments(
        settings.environments.root,
        SandboxRunner(sandbox),
        settings.environments.installer,
        timeout_s=settings.environments.build_timeout_s,
        artifacts=artifacts,
    )
    return LocalAgent(
        sandbox,
        environments,
        data,
        node=node,
        memory=settings.node.memory,
        load_slots=settings.node.load_slots,
        pids=settings.sandbox.pids,
        scratch=settings.sandbox.scratch,
        zygote_memory=settings.node.zygote_memory,
        artifacts=artifacts,
        peer=functools.partial(source, key=key or given.key, tls=secret),
        packs=bool(key or sources),
    )
