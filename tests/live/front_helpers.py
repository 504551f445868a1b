"""`instainfer gateway` for the tests of this folder."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping

import httpx

from instainfer.client import Client
from tests.live.server_helpers import PATIENCE_S, environment


class Gateway:
    """On a port of the kernel's choice; `key` is the one that it is used with, `ca` whom its clients believe."""

    def __init__(
        self,
        *flags: str,
        key: str | None = None,
        variables: Mapping[str, str] | None = None,
        ca: ssl.SSLContext | bool = True,
    ) -> None:
        command = [sys.executable, "-m", "instainfer.cli", "gateway", "--port", "0", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment(variables)
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("instainfer gateway at http"), said
        self.url = said.split()[-1]
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, verify=ca)
        self.client = Client(self.url, key)

    def close(self) -> None:
        self.http.close()
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def gateway(
    *flags: str,
    key: str | None = None,
    variables: Mapping[str, str] | None = None,
    ca: ssl.SSLContext | bool = True,
) -> Iterator[Gateway]:
    made = Gateway(*flags, key=key, variables=variables, ca=ca)
    try:
        yield made
    finally:
        made.close()
