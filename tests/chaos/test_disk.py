"""A full disk: the server says so, serves what needs none, loses nothing, and goes on when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.disk import filled, small_disk
from tests.live.server_helpers import ECHO, Server, eventually, package

pytestmark = [pytest.mark.slow, pytest.mark.root]

LATER = {"prefer": "respond-async"}


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "48m") as disk, Server(disk, "--memory", "512MB") as server:
        server.deploy("n", "echo", ECHO)
        server.result("n", "echo", {"n": 0})
        accepted = {
            server.http.post("/f/n/echo", json={"n": n}, headers={**LATER, "idempotency-key": str(n)}).json()[
                "id"
            ]: n
            for n in range(20)
        }
        data = package(tmp_path, "x = 1\n" + ECHO)
        with filled(disk):
            # what needs no disk is served; what has to be written is refused, with the reason
            for n in range(50):
                assert server.result("n", "echo", {"n": n}) == {"n": n}
            refused = 0
            for n in range(100):  # the log of the database may have room for a few
                headers = {**LATER, "idempotency-key": f"full-{n}"}
                response = server.http.post("/f/n/echo", json={"n": n, "x": "y" * 20_000}, headers=headers)
                if response.status_code == 202:
                    continue
                refused += 1
                assert response.status_code == 503, response.text
                assert "full" in response.json()["detail"] and "space" in response.json()["hint"]
            assert refused
            *_, last = server.put("n", "other", data)
            assert last["event"] == "failed", last
            assert last["problem"]["type"].endswith(":unavailable"), last
            assert server.http.get("/livez").status_code == 200
        # room again: all of it at once
        eventually(lambda: server.http.post("/f/n/echo", json={"n": 1}, headers=LATER).status_code == 202)
        *_, last = server.put("n", "other", data)
        assert last["event"] == "deployed", last
        for id, n in accepted.items():
            eventually(lambda id=id: server.client.job(id)["state"] == "done")  # type: ignore[misc]
            again = server.http.post("/f/n/echo", json={"n": n}, headers={"idempotency-key": str(n)})
            assert (again.status_code, again.json()) == (200, {"n": n})
        with filled(disk):
            server.kill()
        server.start()
        assert server.result("n", "other", {"n": 2}) == {"n": 2}
        assert all(server.client.job(id)["state"] == "done" for id in accepted)
        assert "Traceback" not in server.errors(), server.errors()[-4000:]
