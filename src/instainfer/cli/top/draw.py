"""A picture as lines of text. Every name goes through `safe`: nothing that a tenant chose reaches the terminal as
anything but what is printed, and nothing is read as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from instainfer.cli.output import PHASES, STYLES, bar, clock, safe
from instainfer.cli.top.picture import Invocation, Mark, Picture, Row, key, name
from instainfer.units import say_mb, say_ms, say_s

#: A letter as well as a colour, for who cannot tell the colours apart (which are Okabe and Ito's).
PHASE_LOOKS = {
    "queue": (".", "#999999"),
    "container": ("c", "#e69f00"),
    "extract": ("x", "#f0e442"),
    "import": ("i", "#56b4e9"),
    "load": ("l", "#0072b2"),
    "device": ("d", "#cc79a7"),
    "warmup": ("w", "#d55e00"),
    "inference": ("█", "#009e73"),
}
MARK_LOOKS = {"preload": ("▲", "bold #009e73"), "offload": ("▽", "#cc79a7"), "failed": ("!", "bold #d55e00")}
DIM = "dim"
_NAME = 28  # columns of a name at most
_NARROW = 20  # no page is drawn narrower


def head(picture: Picture, where: str, *, paused: bool = False) -> Text:
    """Two lines: who, how it goes, and the figures of the last minute."""
    now = picture.now
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("instainfer ", "bold")
    text.append(f"{safe(where)}  ")
    if picture.trouble:
        text.append(f"◌ {safe(picture.trouble)}", "bold #d55e00")
    elif paused:
        text.append("‖ paused", "bold #e69f00")
    else:
        text.append("● live", "bold #009e73")
    if now:
        policy = (now.get("policy") or {}).get("mode", "")
        told = [f"up {say_s(now.get('uptime_s', 0.0))}", *([safe(str(policy))] if policy else [])]
        told.append(f"sandbox {safe(str(now['node'].get('sandbox', '')))}")
        text.append("  " + ", ".join(told), DIM)
    text.append("\n")
    if now:
        _figures(text, now, picture.left_out)
    return text


def _figures(text: Text, now: Mapping[str, Any], left_out: int) -> None:
    rates, node = now.get("rates") or {}, now.get("node") or {}

    def one(label: str, value: str, style: str = "bold") -> None:
        text.append(f"{label} ", DIM)
        text.append(value, style)
        text.append("   ")

    def quantile(of: str) -> str:
        return "-" if rates.get(of) is None else say_ms(rates[of])

    one("req/s", f"{rates.get('per_s', 0.0):.1f}")
    hit = rates.get("hit_fraction")
    one("hit", "-" if hit is None else f"{hit:.1%}")
    one("p50", quantile("p50_ms"))
    one("p99", quantile("p99_ms"))
    if rates.get("failed"):
        one("failed", str(rates["failed"]), "bold #d55e00")
    if now.get("queued"):
        one("waiting", str(now["queued"]))
    if "committed_mb" in node:
        one("memory", f"{say_mb(node['committed_mb'])} of {say_mb(node.get('memory_mb', 0.0))}")
    one("pre-loaded", say_mb(now.get("preloaded_mb", 0.0)))
    one("idle", say_mb(sum(container["idle_mb"] for container in now.get("containers", ()))))
    if left_out:
        one("not shown", f"{left_out} warm calls")


# ---- now -----------------------------------------------------------------------------------------------------


def containers(picture: Picture, width: int, wanted: str = "") -> Text:
    """Where there are several nodes, a line for each; then each container a box: its limit as a bar, what is in
    it, what of it runs."""
    width = max(width, _NARROW)
    nodes = picture.nodes()
    lines = [Text("nodes", "bold")] if nodes else []
    lines += [_node(one, width) for one in nodes]
    for one in picture.containers(wanted):
        lines += _box(one, width, f" on {safe(str(one.get('node', '')))}" if nodes else "")
    found = picture.zygotes(wanted)
    if found:
        lines.append(Text("zygotes", "bold"))
    for zygote in found:
        line = Text(f"  {safe(zygote['id']):<6} {safe(zygote['state']):<9} {say_mb(zygote['bytes_mb']):>7}  for ")
        line.append(safe(", ".join(zygote["functions"])))
        lines.append(line)
    if not lines:
        lines.append(Text("no container: the next call creates one" if picture.now else "", DIM))
    return _joined(lines, width)


#: A mark as well as a colour.
NODE_LOOKS = {
    "up": ("●", "#009e73"),
    "suspect": ("◐", "bold #d55e00"),
    "out of reach": ("◐", "bold #d55e00"),
    "lost": ("✕", "bold #d55e00"),
    "draining": ("▽", "#e69f00"),
    "drained": ("■", "#e69f00"),
}


def _node(one: Mapping[str, Any], width: int) -> Text:
    """In use, pre-loaded and not used yet, and idle within containers, of all that it has."""
    state = node_state(one)
    mark, style = NODE_LOOKS.get(state, ("…", DIM))
    line = Text(f"  {_cut(one['node'], 16):<16} ")
    line.append(f"{mark} {safe(state):<12} ", style)
    ahead, idle = one["preloaded_mb"], one["idle_mb"]
    own = one["used_mb"] - ahead + one["zygote_mb"]
    wide = max(8, min(24, width - 100))
    if one["memory_mb"]:
        rest = max(0.0, one["memory_mb"] - own - ahead - idle)
        drawn = bar([(own, "█"), (ahead, "▲"), (idle, "░"), (rest, " ")], wide)
        for part, look in (("█", "#0072b2"), ("▲", "#009e73"), ("░", DIM), (" ", "")):
            line.append(part * drawn.count(part), look)
        line.append(f" {say_mb(own)} in use, {say_mb(ahead)} pre-loaded, {say_mb(idle)} idle", "")
        line.append(f" of {say_mb(one['memory_mb'])}", DIM)
    rates = one.get("rates") or {}
    if rates.get("hit_fraction") is not None:
        line.append(f"  hit {rates['hit_fraction']:.1%}")
    if one.get("problem"):
        line.append(f"  {safe(one['problem'])}", "#d55e00")
    return line


def node_state(one: Mapping[str, Any]) -> str:
    """As people say it: "up" for one that has joined, "suspect" where the cluster does not hear of it."""
    if one["state"] != "joined":
        return str(one["state"])
    return "up" if one["cluster"] == "alive" else "suspect"


def _box(container: Mapping[str, Any], width: int, where: str = "") -> list[Text]:
    owner = key(container, container["owner"])
    inside = container.get("instances", ())
    guests = sum(i["bytes_mb"] for i in inside if key(container, i["function"]) != owner)
    guests = min(guests, container["used_mb"])
    own, idle = container["used_mb"] - guests, container["idle_mb"]
    top = Text("╭ ")
    top.append(safe(container["id"]), "bold")
    top.append(f" {safe(owner)}{where} ", "bold" if container["state"] in ("busy", "loading") else "")
    expires = container.get("expires_in_s")
    told = [container["state"], f"limit {say_mb(container['limit_mb'])}", f"age {say_s(container['age_s'])}"]
    told += ["pinned"] if container.get("pinned") else [f"ends in {say_s(expires)}"] if expires is not None else []
    top.append(safe(", ".join(told)), DIM)
    top.append(" ")
    top.append("─" * max(0, width - top.cell_len - 1) + "╮")
    wide = max(8, min(40, width - 46))
    memory = Text("│ ")
    for part, style in (("█", "#0072b2"), ("▓", "#009e73"), ("░", DIM)):
        drawn = bar([(own, "█"), (guests, "▓"), (idle, "░")], wide)
        memory.append(part * drawn.count(part), style)
    memory.append(f" owner {say_mb(own)}, guests {say_mb(guests)}, idle {say_mb(idle)}")
    lines = [top, memory]
    for instance in inside:
        running, ahead = instance["state"] == "running", instance["level"] != "none" and not instance["served"]
        line = Text("│ ")
        line.append("▶ " if running else "▲ " if ahead else "  ", "bold #009e73")
        line.append(f"{safe(instance['id']):<6} {_cut(key(container, instance['function']), _NAME):<{_NAME}} ")
        state = f"{instance['level']}, {instance['state']}{' (frozen)' * bool(instance.get('frozen'))}"
        line.append(f"{safe(state):<26} {say_mb(instance['bytes_mb']):>7}  ")
        line.append("pre-loaded" if ahead else f"served {instance['served']}", "#009e73" if ahead else DIM)
        lines.append(line)
    for line in lines[1:]:
        line.truncate(width - 1, overflow="ellipsis", pad=True)
        line.append("│")
    lines.append(Text("╰" + "─" * (width - 2) + "╯"))
    return lines


def changes(picture: Picture, width: int, wanted: str = "", most: int = 12) -> Text:
    """What the platform did in the last minute, newest first."""
    found = picture.changes(wanted)
    lines = [Text("in the last minute", "bold")]
    for mark in found[:most]:
        lines.append(_change(mark))
    if len(found) > most:
        lines.append(Text(f"  and {len(found) - most} more", DIM))
    if not found:
        lines.append(Text("  nothing", DIM))
    return _joined(lines, max(width, _NARROW))


def _change(mark: Mark) -> Text:
    line = Text(f"  {clock(mark['wall'])} ")
    character, style = MARK_LOOKS.get(mark["what"], (" ", ""))
    line.append(f"{character} {safe(mark['what'].replace('_', ' ')):<10} ", style)
    line.append(safe(name(mark)))
    where = " in ".join(safe(mark[part]) for part in ("instance", "container") if mark.get(part))
    where = where or safe(mark.get("node") or "")
    line.append(f"  {where}", DIM)
    if mark.get("ms") is not None:
        line.append(f"  took {say_ms(mark['ms'])}")
    if mark.get("saves_ms") is not None:
        line.append(f"  saves {say_ms(mark['saves_ms'])}", DIM)
    if mark.get("why"):
        line.append(f"  {safe(mark['why'])}", DIM)
    return line


# ---- timeline ------------------------------------------------------------------------------------------------


def timeline(picture: Picture, width: int, over_s: float, wanted: str = "", sort: str = "latest") -> Text:
    """A row for each function, each call a bar split into its phases, pre-loads and off-loads as marks."""
    width = max(width, _NARROW)
    rows = picture.rows(over_s, wanted, sort)
    names = min(_NAME, max((len(safe(row.function)) for row in rows), default=4), width // 3)
    wide = width - names - 8
    lines = []
    for row in rows:
        line = Text(f"{_cut(row.function, names):<{names}} ")
        for character, style in cells(row, picture.wall - over_s, over_s, wide):
            line.append(character, style)
        line.append(f"{len(row.invocations):>6}", DIM)
        lines.append(line)
    if not rows:
        lines.append(Text("no call, and nothing in memory", DIM))
    ends = f"{say_s(over_s)} ago"
    lines.append(Text(f"{sort:<{names}} {ends}{'now':>{max(3, wide - len(ends))}} calls", DIM))
    legend = Text()
    for phase, (character, style) in PHASE_LOOKS.items():
        legend.append(character, style)
        legend.append(f" {phase}  ")
    for what, (character, style) in MARK_LOOKS.items():
        legend.append(character, style)
        legend.append(f" {what}  ")
    return _joined([*lines, legend], width)


def cells(row: Row, begin: float, over_s: float, wide: int) -> list[tuple[str, str]]:
    """(character, style) of each column. Where calls share one, the one that waited longest is seen; a mark where
    there is no call."""
    found: list[tuple[str, str]] = [(" ", "")] * wide
    waited = [-1.0] * wide
    scale = wide / over_s
    for mark in row.marks:
        column = int((mark["wall"] - begin) * scale)
        if mark["what"] in MARK_LOOKS and 0 <= column < wide:
            found[column] = MARK_LOOKS[mark["what"]]
    for call in row.invocations:
        phases = _phases(call)
        waits = sum(ms for phase, ms in phases if phase != "inference")
        first = int((call["wall"] - begin) * scale)
        last = int((call["wall"] + call["e2e_ms"] / 1e3 - begin) * scale)
        for column in range(max(first, 0), min(last, wide - 1) + 1):
            if waits <= waited[column]:
                continue
            waited[column] = waits
            if call["status"] != "ok" and column == min(last, wide - 1):
                found[column] = MARK_LOOKS["failed"]
            elif first == last:
                hit = call["start"] in ("warm", "preloaded")  # microseconds in a queue are not worth a colour
                found[column] = PHASE_LOOKS["inference" if hit else max(phases, key=lambda one: one[1])[0]]
            else:
                found[column] = PHASE_LOOKS[
                    _phase_at(phases, ((column + 0.5) / scale + begin - call["wall"]) * 1e3)
                ]
    return found


def _phases(call: Invocation) -> list[tuple[str, float]]:
    phases = call.get("phases") or {}
    return [(phase, phases.get(f"{phase}_ms") or 0.0) for phase in PHASES]


def _phase_at(phases: Sequence[tuple[str, float]], ms: float) -> str:
    seen = 0.0
    for phase, took in phases:
        seen += took
        if ms < seen:
            return phase
    return "inference"


# ---- calls ---------------------------------------------------------------------------------------------------

CALL_HEADERS = ("WHEN", "FUNCTION", "START", "STATUS", "TOTAL", "WAITED", "INFERENCE", "ACTIVATION")


def call(of: Invocation) -> list[Text]:
    """The cells of a row of CALL_HEADERS."""
    inference = (of.get("phases") or {}).get("inference_ms") or 0.0
    waited = sum(ms for phase, ms in _phases(of) if phase != "inference")
    return [
        Text(clock(of["wall"])),
        Text(_cut(name(of), 40)),
        Text(safe(of["start"] or "-"), STYLES.get(of["start"], "")),
        Text(safe(of["status"]), "" if of["status"] == "ok" else "bold #d55e00"),
        *(Text(say_ms(ms), justify="right") for ms in (of["e2e_ms"], waited, inference)),
        Text(safe(of["id"])),
    ]


def _cut(text: str, width: int) -> str:
    text = safe(text)
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def _joined(lines: Iterable[Text], width: int) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, line in enumerate(lines):
        line.truncate(width, overflow="ellipsis")
        text.append("\n" if number else "")
        text.append_text(line)
    return text
