"""Gateways in front of a server that is killed and restarted under load: what callers see of it.

All of it is encrypted, with certificates of both sides between server and agents; test_cluster.py and
test_lease.py have it in the clear."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from instainfer import rolling
from tests.live.certificates import Certificates, made
from tests.live.front_helpers import Gateway, gateway
from tests.live.server_helpers import PATIENCE_S, Server, archive, eventually
from tests.live.test_cluster import FUNCTION, KEY, Agents

pytestmark = pytest.mark.slow


class Callers:
    """One for each name, at either gateway in turn when one cannot be reached."""

    def __init__(self, urls: list[str], functions: list[str], ca: ssl.SSLContext, *, keys: bool) -> None:
        self._urls, self._ca, self._keys = urls, ca, keys
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(functions))
        self.answered = 0
        self.refused: list[tuple[int, str]] = []  # status and code
        self.moved = 0
        self._running = [self._pool.submit(self._call, name) for name in functions]

    def _call(self, name: str) -> None:
        n = at = 0
        with httpx.Client(timeout=PATIENCE_S, trust_env=False, verify=self._ca) as http:
            while not self._stop.is_set():
                n += 1
                headers = {"authorization": f"Bearer {SECRET}"}
                if self._keys:
                    headers["idempotency-key"] = f"{threading.get_ident()}-{n}"
                while True:
                    try:
                        url = f"{self._urls[at]}/f/ns/{name}"
                        answer = http.post(url, json={"n": n, "s": 0.02}, headers=headers)
                        break
                    except httpx.TransportError:
                        at = (at + 1) % len(self._urls)
                        self.moved += 1
                if answer.status_code == 200:
                    assert answer.json()["n"] == n
                    self.answered += 1
                else:
                    self.refused.append((answer.status_code, answer.json()["type"].rpartition(":")[2]))

    def more(self, count: int = 20) -> None:
        until = self.answered + count
        eventually(lambda: self.answered >= until or any(one.done() for one in self._running))

    def stop(self) -> None:
        self._stop.set()
        for one in self._running:
            one.result(90)
        self._pool.shutdown()


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    """Whose authority the command line's client believes."""
    found = made(tmp_path / "certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(found.ca))
    return found


def shown(certificates: Certificates) -> dict[str, str]:
    ca, cert, key = map(str, certificates)
    return {"INSTAINFER_TLS__CA": ca, "INSTAINFER_TLS__CERT": cert, "INSTAINFER_TLS__KEY": key}


@pytest.fixture
def agents(tmp_path: Path, certificates: Certificates) -> Iterator[Agents]:
    both = Agents(tmp_path, "a", "b", variables=shown(certificates))
    try:
        yield both
    finally:
        both.close()


class Fixed(Server):
    """On the same port at every start."""

    def start(self) -> None:
        if "--port" not in self._flags and self._port:
            self._flags = (*self._flags, "--port", str(self._port))
        super().start()
        self._port = int(self.url.rpartition(":")[2])

    _port = 0


SECRET = "k" * 40
STREAM = "def handler(event):\n    for n in range(3):\n        yield {'n': n}\n"


def test_a_server_that_is_killed_and_one_that_is_restarted_refuse_nobody(
    agents: Agents, certificates: Certificates
) -> None:
    cert, key = str(certificates.cert), str(certificates.key)
    ca = ssl.create_default_context(cafile=certificates.ca)
    fronts = {
        "INSTAINFER_TLS__CA": str(certificates.ca),
        "INSTAINFER_GATEWAY__CERT": cert,
        "INSTAINFER_GATEWAY__CERT_KEY": key,
    }
    variables = {
        **shown(certificates),
        "INSTAINFER_SERVER__CERT": cert,
        "INSTAINFER_SERVER__CERT_KEY": key,
        "INSTAINFER_CLUSTER__KEY": KEY,
        "INSTAINFER_CLUSTER__LOST_S": "2",
        "INSTAINFER_LIMITS__ATTEMPTS": "20",
        "INSTAINFER_SERVER__API_KEY": SECRET,
    }
    with (
        Fixed(agents.directory, "--cluster", agents.address(), variables=variables) as server,
        gateway("--server", server.url, key=SECRET, variables=fronts, ca=ca) as one,
        gateway("--server", server.url, key=SECRET, variables=fronts, ca=ca) as other,
    ):
        assert all(url.startswith("https://") for url in (server.url, one.url, agents.about["a"].url))
        with pytest.raises(httpx.TransportError):  # whoever shows no certificate is nobody to an agent
            httpx.get(agents.about["a"].url, verify=ca, trust_env=False)
        _all_faces(one)
        plain = Callers([one.url, other.url], ["f"] * 2, ca, keys=False)
        keyed = Callers([other.url, one.url], ["f"] * 2, ca, keys=True)
        both = (plain, keyed)
        for each in both:
            each.more()
        server.kill()
        server.start()
        for each in both:
            each.more()
        refused = list(plain.refused)
        done = list(rolling.restart(one.client))
        assert done == ["a is restarted", "b is restarted", "the server is restarted"]
        for each in both:
            each.more()
        assert plain.refused == refused  # by a rolling restart nothing fails
        gates = {gate["url"]: gate for gate in server.client.status()["gateways"]}
        assert set(gates) == {one.url, other.url}
        assert sum(gate["sent_again"] for gate in gates.values()) > 0
        assert not any(gate["refused"] for gate in gates.values())
        one.process.kill()  # its callers go to the other one
        one.process.wait()
        for each in both:
            each.more()
            each.stop()
        assert plain.moved and not keyed.refused
        # what ran when the server was killed: one request of each caller at most
        assert len(plain.refused) <= 2
        assert all(said == (502, "interrupted") for said in plain.refused)


def _all_faces(front: Gateway) -> None:
    """Keys, management, streams and answers that come later."""
    assert front.http.post("/f/ns/stream", json={}).status_code == 401
    for name, source in (("f", FUNCTION), ("stream", STREAM)):
        package = archive({"main.py": source.encode()})
        *_, last = front.client.deploy("ns", name, package, {"memory": "64MB", "clone": False})
        assert last["event"] == "deployed"
    front.http.headers["authorization"] = f"Bearer {SECRET}"
    got = front.http.post("/f/ns/stream", json={})
    assert got.headers["content-type"] == "text/event-stream" and got.text.count("data: ") == 3
    assert got.headers["x-instainfer-activation"] and got.headers["transfer-encoding"] == "chunked"
    assert front.http.get("/v2/models/ns/stream").status_code == 200
    assert front.http.get("/api/v1/namespaces/ns/actions").json()[0]["name"] in ("f", "stream")
    later = front.http.post("/f/ns/f", json={"n": 1}, headers={"prefer": "respond-async"})
    assert later.status_code == 202
    where = later.json()["result"]
    eventually(lambda: front.http.get(where).status_code == 200)
    assert front.http.get(where).json()["n"] == 1
