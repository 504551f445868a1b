"""The dashboard's *Cluster* page in a real browser, before a server with two agents, each a process of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from instainfer.client import PREFIX
from tests.live.browser import PHONE, Tab, inaccessible
from tests.live.server_helpers import ECHO, Server, eventually
from tests.live.test_cluster import Agents, nodes, served

pytestmark = pytest.mark.slow

WIDE = {"width": 1280, "height": 900}
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Agents]:
    made = Agents(tmp_path_factory.mktemp("ui"), "a", "b")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def cluster(agents: Agents) -> Iterator[Server]:
    with served(agents) as server:
        for name in ("f", "g"):
            server.deploy("n", name, ECHO, memory="64MB")
        for name in ("f", "f", "g"):
            server.result("n", name)
        yield server


@pytest.fixture
def tab(cluster: Server, browser: Any) -> Iterator[Tab]:
    with Tab(browser, cluster.url) as opened:
        yield opened
        assert opened.errors == []


def card(tab: Tab, node: str) -> str:
    return str(tab.page.locator(f"[data-node={node}]").inner_text())


def state(tab: Tab, node: str) -> str:
    return str(tab.page.locator(f"[data-node={node}]").get_attribute("data-state"))


def say(tab: Tab, how: str, value: object) -> str:
    return str(tab.import_("dom.js", f"m.{how}(a[0])", value))


def first_event_after(tab: Tab, wall: float) -> dict[str, Any]:
    """The first event of the feed that was made after this time of the server's, once the page has it; and the
    page as it was then."""
    found: dict[str, Any] = tab.page.evaluate(
        """async (wall) => {
          const { app } = await import("/ui/app.js");
          while (app.event.now.wall <= wall) await new Promise((done) => requestAnimationFrame(done));
          const cards = [...document.querySelectorAll("[data-node]")];
          const states = cards.map((one) => [one.dataset.node, one.dataset.state]);
          return { wall: app.event.now.wall, states: Object.fromEntries(states) };
        }""",
        wall,
    )
    return found


def test_its_figures_are_those_of_the_api(tab: Tab, cluster: Server) -> None:
    page = tab.open("cluster")
    assert page.locator("#pages a[aria-current]").inner_text() == "Cluster"

    def same() -> bool:
        for name, one in nodes(cluster).items():
            text = card(tab, name)
            words = [
                f"Containers\n{one['containers']}",
                f"Instances\n{one['instances']}",
                f"Home of\n{one['homes']} function",
                f"{say(tab, 'mb', one['memory_mb'])}: ",
                f"{say(tab, 'mb', one['used_mb'] - one['preloaded_mb'])} in use",
                f"{say(tab, 'mb', one['idle_mb'])} idle",
            ]
            if state(tab, name) != "up" or not all(word in text for word in words):
                return False
        return True

    eventually(same, what="the same figures")
    assert sum(one["homes"] for one in nodes(cluster).values()) == 2
    there = cluster.client.containers()["containers"]
    at = {(instance["function"], one["node"]) for one in there for instance in one["instances"]}
    assert {function for function, _ in at} >= {"n/f", "n/g"}
    columns = page.locator(".grid thead th").all_inner_texts()
    assert columns == ["Function", "a", "b"]
    for function in ("n/f", "n/g"):
        cells = page.locator(f"tr[data-function='{function}'] td").all_inner_texts()
        for node, text in zip(columns[1:], cells, strict=True):
            assert ("warm" in text) == ((function, node) in at), (function, node, text)
        assert sum("home" in text for text in cells) == 1
    page.get_by_role("searchbox").fill("n/g")
    assert page.locator(".grid tbody tr").count() == 1


def test_hits_are_counted_by_node(tab: Tab, cluster: Server) -> None:
    page = tab.open("cluster")
    (where,) = {one["node"] for one in cluster.client.containers()["containers"] if one["owner"] == "n/f"}
    for _ in range(3):
        cluster.result("n", "f")
    rates = (
        "(node) => import('/ui/app.js').then((m) => m.app.event.now.nodes.find((one) => one.node === node).rates)"
    )
    eventually(lambda: page.evaluate(rates, where)["starts"].get("warm", 0) >= 3, what="warm calls")
    told = page.evaluate(rates, where)
    shown = f"Hit rate\n{say(tab, 'percent', told['hit_fraction'])}"
    eventually(lambda: shown in card(tab, where) or page.evaluate(rates, where) != told)
    ended = page.evaluate("import('/ui/app.js').then((m) => m.app.event.now)")
    assert sum(one["rates"]["invocations"] for one in ended["nodes"]) <= ended["rates"]["invocations"]


def test_a_node_is_drained_and_taken_back_by_keyboard(tab: Tab, cluster: Server) -> None:
    page = tab.open("cluster")
    page.locator("#act-b").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Take the draining of b back").wait_for()
    assert nodes(cluster)["b"]["state"] == "drained" or nodes(cluster)["b"]["containers"]
    eventually(lambda: nodes(cluster)["b"]["state"] == "drained" and state(tab, "b") == "drained")
    assert page.locator("#said").inner_text().startswith("b is drain")
    page.get_by_text("the last one: requests would have to wait").wait_for()
    assert page.evaluate("document.activeElement.id") == "act-b"  # the page goes on, focus stays
    page.keyboard.press("Enter")
    eventually(lambda: nodes(cluster)["b"]["state"] == "joined" and state(tab, "b") == "up")
    changes = page.locator("main").inner_text()
    assert "node drained" in changes
    assert "node taken back" in changes


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
def test_it_is_accessible(cluster: Server, browser: Any, scheme: str, size: dict[str, int]) -> None:
    with Tab(browser, cluster.url, trusting=True, viewport=size, color_scheme=scheme) as tab:
        page = tab.open("cluster")
        page.locator(".grid table").wait_for()
        assert inaccessible(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        # in one look: an event may draw the card anew between two
        assert page.evaluate("document.querySelector('#act-a').getBoundingClientRect().height") >= 24


def test_names_of_nodes_are_text(tab: Tab) -> None:
    page = tab.open("cluster")
    shown = tab.import_(
        "cluster.js",
        """await (async () => {
          const { app } = await import("/ui/app.js");
          const now = structuredClone(app.event.now);
          now.nodes[0].node = now.nodes[0].problem = now.nodes[0].state = a[0];
          now.functions = [{ function: `${a[0]}/${a[0]}`, home: a[0], queued: 1, pinned: true, state: a[0] }];
          const place = document.createElement("div");
          m.show(place, [], { mayAct: () => true }).update({ event: { now } });
          document.body.append(place);
          return place.textContent;
        })()""",
        HOSTILE,
    )
    assert HOSTILE in shown
    assert page.locator("img[src=x]").count() == 0


def test_a_killed_node_is_lost_in_the_first_event_after_the_api_says_so(
    tab: Tab, cluster: Server, agents: Agents
) -> None:
    tab.open("cluster")
    agents.kill("a")
    eventually(lambda: nodes(cluster)["a"]["state"] == "lost")
    after = first_event_after(tab, time.time())
    assert after["states"]["a"] == "lost", after
    assert "its functions go elsewhere" in card(tab, "a")
    assert state(tab, "b") == "up"
    assert cluster.call("n", "f").status_code == 200
    agents.again("a")
    eventually(lambda: nodes(cluster)["a"]["state"] == "joined" and state(tab, "a") == "up")
    changes = tab.page.locator("main").inner_text()
    assert "node lost" in changes
    assert "node joined" in changes


def test_a_key_of_a_namespace_sees_no_nodes(cluster: Server, browser: Any) -> None:
    """The last one here: from now on the server asks for keys."""
    key = cluster.client.add_namespace("n", "admin")["auth"]
    mine = {"authorization": f"Bearer {key}"}
    assert cluster.http.get(f"{PREFIX}/nodes", headers=mine).status_code == 403
    assert cluster.http.post(f"{PREFIX}/nodes/a/drain", headers=mine).status_code == 403
    with Tab(browser, cluster.url) as tab:
        tab.page.goto(f"{cluster.url}/ui/")
        tab.page.evaluate("key => sessionStorage.setItem('instainfer-key', key)", key)
        tab.page.reload()
        page = tab.open("cluster")
        page.get_by_text("Nodes are for the server's owner to see.").wait_for()
        assert not page.locator("#pages a[href='#/cluster']").is_visible()
        assert [error for error in tab.errors if not re.search(r"status of 40[13]", error)] == []
