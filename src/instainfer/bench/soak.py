"""Does anything grow? A server under mixed load for long; its memory, descriptors and processes are looked at.

    python -m instainfer.bench.soak --minutes 30 --functions 50 --json soak.json

Many functions of several kinds on less memory than they want, so that containers come and go all the time: plain
calls, calls that fail, streams, requests with a key or answered later, functions deployed anew. What is judged is
the time after the first third, in which everything has been used once: a robust slope (the median of the slopes
between all pairs of looks) times that time. Exit status 1 where something grew, or a request
had no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import psutil  # type: ignore[import-untyped] # it ships no types

from instainfer.bench.report import Report
from instainfer.bench.server import NAMESPACE, Bench, package, serving

KINDS = {
    "echo": "def handler(event):\n    return event\n",
    "holds": "held = bytearray(b'x') * (8 << 20)\n\ndef handler(event):\n    return len(held)\n",
    "fails": "def handler(event):\n    if event.get('n', 0) % 3 == 0: raise ValueError('no')\n    return event\n",
    "streams": "def handler(event):\n    for n in range(5): yield f'{n}\\n'\n",
    "prints": "def handler(event):\n    print('x' * 200)\n    return event\n",
}
EVERY_S = 10.0  # between two looks
PAUSE_S = 0.02  # of a client between two requests: what is looked for is growth, not throughput
DEPLOY_S = 20.0  # between two deployments
CLIENTS = 4


class Watched(NamedTuple):
    """One figure: what it may grow by, as a share of its median and at least so much."""

    key: str
    share: float
    least: float


#: The server's own memory has the books of what ran (records wait in batches), so a little is allowed to it. The
#: family comes and goes with containers: its slope is what counts, not its range.
WATCHED = (
    Watched("server_mb", 0.05, 8.0),
    Watched("launcher_mb", 0.05, 4.0),
    Watched("server_descriptors", 0.05, 10.0),
    Watched("server_threads", 0.0, 4.0),
    Watched("processes", 0.10, 5.0),
    Watched("family_descriptors", 0.10, 30.0),
)


def look(pid: int) -> dict[str, float]:
    """At a server and all that it started, now."""
    server = psutil.Process(pid)
    family: list[psutil.Process] = server.children(recursive=True)
    found = {
        "server_mb": server.memory_info().rss / 1e6,
        "launcher_mb": 0.0,
        "server_descriptors": float(server.num_fds()),
        "server_threads": float(server.num_threads()),
        "processes": float(len(family)),
        "family_descriptors": 0.0,
    }
    for process in family:
        with contextlib.suppress(psutil.Error, OSError):
            found["family_descriptors"] += process.num_fds()
            if any("launcher" in part for part in process.cmdline()):
                found["launcher_mb"] += process.memory_info().rss / 1e6
    return found


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Per second: the median over all pairs, which a few odd looks do not move. At least two looks."""
    pairs = itertools.combinations(zip(times, values, strict=True), 2)
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0])


def verdict(looks: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each figure of WATCHED, from looks with their time `at_s`; judged after the first third."""
    end = looks[-1]["at_s"]
    judged = [one for one in looks if one["at_s"] >= end / 3]
    rows: list[dict[str, Any]] = []
    for watched in WATCHED:
        values = [one[watched.key] for one in judged]
        grown = 0.0
        if len(judged) > 1:
            times = [one["at_s"] for one in judged]
            grown = slope(times, values) * (times[-1] - times[0])
        allowed = max(watched.least, watched.share * median(values))
        rows.append(
            {
                "name": watched.key,
                "first": looks[0][watched.key],
                "p50": median(values),
                "max": max(values),
                "last": values[-1],
                "grown": grown,
                "allowed": allowed,
                "flat": grown <= allowed,
                "n": len(values),
            }
        )
    return rows


class Traffic:
    """Clients that call until told to stop; counts what they were answered."""

    def __init__(self, bench: Bench, names: Sequence[str], seed: int) -> None:
        self.answers: Counter[str] = Counter()
        self._bench = bench
        self._names = names
        #: Few are popular: the common case keeps some warm and evicts the rest.
        self._weights = [1 / (rank + 1) for rank in range(len(names))]
        self._seed = seed

    async def client(self, number: int) -> None:
        rng = random.Random(f"{self._seed}-{number}")
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as http:
            for sent in itertools.count():
                (name,) = rng.choices(self._names, self._weights)
                headers = {}
                if rng.random() < 0.1:
                    headers["idempotency-key"] = f"{self._seed}-{number}-{sent}"
                if rng.random() < 0.1:
                    headers["prefer"] = "respond-async"
                try:
                    response = await http.post(self._bench.address(name), json={"n": sent}, headers=headers)
                    self.answers[str(response.status_code)] += 1
                except httpx.HTTPError as error:
                    self.answers[type(error).__name__] += 1
                await asyncio.sleep(PAUSE_S)

    async def deployments(self, packages: Sequence[tuple[str, bytes]]) -> None:
        """Now and then one of them is deployed anew, or deleted and deployed."""
        rng = random.Random(f"{self._seed}-deployments")
        while True:
            await asyncio.sleep(DEPLOY_S)
            name, data = rng.choice(packages)
            if rng.random() < 0.3:
                await asyncio.to_thread(self._bench.client.delete, NAMESPACE, name)
            await asyncio.to_thread(self._bench.deploy, name, data, SETTINGS)
            self.answers["deployed"] += 1


SETTINGS = {"memory": "64MB"}


async def soak(bench: Bench, report: Report, minutes: float, functions: int, seed: int) -> list[dict[str, float]]:
    """The looks."""
    kinds = list(KINDS.items())
    packages = []
    for number in range(functions):
        kind, source = kinds[number % len(kinds)]
        packages.append((f"{kind}-{number}", package({"main.py": source + f"\n# {number}\n"})))
    for name, data in packages:
        report.say(f"deploying {name}")
        await asyncio.to_thread(bench.deploy, name, data, SETTINGS)
    traffic = Traffic(bench, [name for name, _ in packages], seed)
    tasks = [asyncio.create_task(traffic.client(number)) for number in range(CLIENTS)]
    tasks.append(asyncio.create_task(traffic.deployments(packages)))
    looks: list[dict[str, float]] = []
    began = time.monotonic()
    try:
        while (at := time.monotonic() - began) < minutes * 60:
            looks.append({"at_s": at, **await asyncio.to_thread(look, bench.pid)})
            if len(looks) % 6 == 1:
                shown = ", ".join(f"{key} {value:.0f}" for key, value in looks[-1].items())
                report.say(f"{shown}; {dict(traffic.answers)}")
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(EVERY_S)
        looks.append({"at_s": time.monotonic() - began, **await asyncio.to_thread(look, bench.pid)})
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.rows.append({"name": "requests", **dict(traffic.answers)})
    report.rows.append(unanswered(traffic.answers))
    return looks


def unanswered(answers: Mapping[str, int]) -> dict[str, Any]:
    """Requests that got no answer, or that the server could not serve: a function's own failure is an answer."""
    told = {"deployed", "200", "202", "404", "502"}  # 404: between a deletion and the deployment after it
    count = sum(number for answer, number in answers.items() if answer not in told)
    return {"name": "unanswered", "last": float(count), "allowed": 0.0, "flat": count == 0}


def measure(
    minutes: float, functions: int, memory: str, seed: int, json_path: Path | None, looks_path: Path | None
) -> bool:
    """Whether nothing grew and every request was answered."""
    with Report("bench soak", json_path) as report:
        with serving("--memory", memory) as bench:
            report.machine["sandbox"] = bench.sandbox
            looks = asyncio.run(soak(bench, report, minutes, functions, seed))
        rows = verdict(looks)
        report.rows += rows
        report.table(
            f"{functions} functions in {memory} for {minutes:g} minutes",
            ("", "first", "median", "most", "last", "grown", "allowed", "flat"),
            [
                (
                    row["name"],
                    *(f"{row[key]:.1f}" for key in ("first", "p50", "max", "last", "grown", "allowed")),
                    "yes" if row["flat"] else "NO",
                )
                for row in rows
            ],
            [
                f"unanswered: {report.rows[1]['last']:.0f} of {report.rows[0]}",
                "median, most and growth are of the time after the first third",
            ],
        )
        report.finish()
    if looks_path is not None:
        looks_path.write_text("".join(json.dumps(one) + "\n" for one in looks))
    return all(row["flat"] for row in report.rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--functions", type=int, default=50)
    parser.add_argument("--memory", default="1GB", help="of the server, for containers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here; - is stdout")
    parser.add_argument("--looks", type=Path, help="write every look here, a JSON object a line")
    given = parser.parse_args()
    flat = measure(given.minutes, given.functions, given.memory, given.seed, given.json, given.looks)
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    main()
