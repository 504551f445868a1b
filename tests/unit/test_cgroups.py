"""What is written to and read from control groups, on plain directories. That the kernel takes it is the contract
suite's business."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from instainfer.sandbox import cgroupfs, cgroups
from instainfer.sandbox.cgroups import V1, V2

V2_FILES = (
    "cgroup.subtree_control",
    "cgroup.procs",
    "cgroup.freeze",
    "cgroup.kill",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "cpu.weight",
)
ALL = {"freezer/run/c1/i1", "memory/run/c1/i1", "pids/run/c1", "cpu/run/c1"}
V1_FILES = (
    "tasks",
    "cgroup.procs",
    "freezer.state",
    "pids.max",
    "cpu.shares",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
)


def group(path: Path, files: tuple[str, ...], **texts: str) -> Path:
    """A directory that looks like a group. (The kernel fills a new one with files; a plain one has to be filled
    before.)"""
    path.mkdir(parents=True, exist_ok=True)
    for file in files:
        (path / file).write_text("")
    for file, text in texts.items():
        (path / file.replace("__", ".")).write_text(text)
    return path


def v2(root: Path, controllers: str) -> V2:
    group(root, V2_FILES, cgroup__controllers=controllers)
    for path in ("run", "run/c1", "run/c1/manager", "run/c1/i1"):
        group(root / path, V2_FILES)
    return V2("run", str(root))


def v1(root: Path, *controllers: str) -> V1:
    for controller in controllers:
        for path in ("run/c1", "run/c1/i1"):
            group(root / controller / path, V1_FILES, memory__limit_in_bytes="0")
    return V1("run", {controller: str(root / controller) for controller in controllers})


def test_v2_limits_the_container_and_the_instance(tmp_path: Path) -> None:
    groups = v2(tmp_path, "cpuset cpu io memory pids")
    (tmp_path / "run/c1/memory.stat").write_text("anon 10\nfile 5\nshmem 3\n")
    groups.add_container("c1", limit=1000, pids=7)
    groups.add_instance("c1", "i1", limit=400)
    read = {
        name: (tmp_path / "run/c1" / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max")
    }
    assert read == {"memory.max": "1000", "memory.swap.max": "0", "pids.max": "7"}
    assert (tmp_path / "run/c1/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (tmp_path / "run/c1/i1/memory.max").read_text() == "400"
    assert (tmp_path / "run/c1/manager/memory.max").read_text() == ""
    assert (groups.limit("c1"), groups.limit("c1", "i1")) == (1000, 400)
    assert groups.controllers == {"memory", "pids", "freezer"}


def test_v2_works_without_controllers(tmp_path: Path) -> None:
    groups = v2(tmp_path, "")
    groups.add_container("c1", limit=1000, pids=7)
    groups.add_instance("c1", "i1", limit=400)
    groups.resize("c1", 10)
    assert groups.controllers == {"freezer"}
    assert groups.limit("c1") is None
    assert groups.oom_kills("c1", "i1") == 0
    assert (tmp_path / "run/c1/memory.max").read_text() == ""


def test_v2_reads_state(tmp_path: Path) -> None:
    groups = v2(tmp_path, "memory")
    events = {"memory__events": "low 0\noom 3\noom_kill 2\n", "cgroup__events": "populated 1\nfrozen 1\n"}
    group(tmp_path / "run/c1/i1", (), cgroup__procs="12\n34\n", **events)
    (tmp_path / "run/c1/memory.stat").write_text("anon 10\nfile 5\nshmem 3\n")
    (tmp_path / "run/c1/manager/cgroup.procs").write_text("1\n")
    assert groups.oom_kills("c1", "i1") == 2
    assert groups.frozen("c1", "i1")
    assert groups.anonymous("c1") == 13
    assert (groups.pids("c1", "i1"), groups.pids("c1")) == ([12, 34], [1, 12, 34])
    assert groups.containers() == ["c1"]


@pytest.mark.parametrize("version", [1, 2])
def test_shrinking_below_what_is_in_use_is_refused_at_once(tmp_path: Path, version: int) -> None:
    groups = v1(tmp_path, "memory", "freezer") if version == 1 else v2(tmp_path, "memory")
    stat = "total_rss 900\ntotal_shmem 50\n" if version == 1 else "anon 900\nshmem 50\n"
    (tmp_path / ("memory/run/c1" if version == 1 else "run/c1") / "memory.stat").write_text(stat)
    with pytest.raises(OSError, match="950 bytes are in use") as caught:
        groups.resize("c1", 949)
    assert caught.value.errno == errno.EBUSY
    groups.resize("c1", 950)
    assert groups.limit("c1") == 950


def test_v1_keeps_memory_below_memory_with_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's rule (mem_cgroup_resize_max): at no moment may the one be above the other."""
    groups = v1(tmp_path, "memory", "freezer")
    values = {"memory.limit_in_bytes": 0, "memory.memsw.limit_in_bytes": 0}

    def write(path: Path, text: str) -> None:
        values[path.name] = int(text)
        assert values["memory.limit_in_bytes"] <= values["memory.memsw.limit_in_bytes"]
        path.write_text(text)

    monkeypatch.setattr(cgroupfs, "write", write)
    for limit in (1000, 2000, 500, 500, 800):
        groups.resize("c1", limit)
        assert set(values.values()) == {limit}


def test_v1_reads_state(tmp_path: Path) -> None:
    groups = v1(tmp_path, "memory", "freezer")
    group(tmp_path / "memory/run/c1", (), memory__stat="cache 7\nrss 1\nshmem 1\ntotal_rss 20\ntotal_shmem 4\n")
    group(tmp_path / "memory/run/c1/i1", (), memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    state = tmp_path / "freezer/run/c1/i1/freezer.state"
    assert groups.anonymous("c1") == 24
    assert groups.oom_kills("c1", "i1") == 1
    for text, frozen in (("FROZEN\n", True), ("FREEZING\n", False), ("THAWED\n", False)):
        state.write_text(text)
        assert groups.frozen("c1", "i1") is frozen


def test_v1_works_with_the_freezer_alone(tmp_path: Path) -> None:
    groups = v1(tmp_path, "freezer")
    groups.add_container("c1", limit=1000, pids=7)
    groups.add_instance("c1", "i1", limit=400)
    groups.resize("c1", 10)
    assert groups.controllers == {"freezer"}
    assert (groups.limit("c1"), groups.oom_kills("c1", "i1"), groups.pids("c1")) == (None, 0, [])


def test_taking_a_process_that_came_by_the_door_moves_nothing(tmp_path: Path) -> None:
    groups = v2(tmp_path, "")
    procs = tmp_path / "run/c1/i1/cgroup.procs"
    procs.write_text("5\n77\n")
    groups.take("c1", "i1", 77)
    assert procs.read_text() == "5\n77\n"
    groups.take("c1", "i1", 8)
    assert procs.read_text().startswith("8")


def test_on_v1_an_outsider_enters_the_hierarchies_of_the_container_too(tmp_path: Path) -> None:
    groups = v1(tmp_path, "cpu", "memory", "freezer", "pids")
    for outside, entered in ((False, {"freezer/run/c1/i1", "memory/run/c1/i1"}), (True, ALL)):
        doors = groups.doors("c1", "i1", outside=outside)
        assert {str(Path(f"/proc/self/fd/{door}").readlink()) for door in doors} == {
            str(tmp_path / place / "tasks") for place in entered
        }
        for door in doors:
            os.close(door)
    (tmp_path / "memory/run/c1/i1/cgroup.procs").write_text("77\n")
    (tmp_path / "cpu/run/c1/cgroup.procs").write_text("77\n1\n")
    groups.take("c1", "i1", 77)
    procs = {place: (tmp_path / place / "cgroup.procs").read_text() for place in ALL}
    assert procs == {**dict.fromkeys(ALL, "77"), "memory/run/c1/i1": "77\n", "cpu/run/c1": "77\n1\n"}
    assert groups.pids("c1") == [1, 77]


def test_on_v2_an_outsider_enters_one_group(tmp_path: Path) -> None:
    groups = v2(tmp_path, "memory pids cpu")
    (door,) = groups.doors("c1", "i1", outside=True)
    assert Path(f"/proc/self/fd/{door}").readlink() == tmp_path / "run/c1/i1/cgroup.procs"
    os.close(door)


def test_an_instance_has_an_account_of_its_own(tmp_path: Path) -> None:
    v1_ = v1(tmp_path / "1", "memory", "freezer")
    stat = "rss 1\nshmem 1\ntotal_rss 20\ntotal_shmem 4\ntotal_cache 900\n"
    group(tmp_path / "1/memory/run/c1/i1", (), memory__stat=stat)
    v2_ = v2(tmp_path / "2", "memory")
    group(tmp_path / "2/run/c1/i1", (), memory__stat="anon 20\nfile 900\nshmem 4\n")
    assert v1_.anonymous("c1", "i1") == v2_.anonymous("c1", "i1") == 24
    assert v1_.anonymous("c1", "i9") == v2_.anonymous("c1", "i9") == 0


def test_processors_are_shared_by_weight(tmp_path: Path) -> None:
    v1_, v2_ = v1(tmp_path / "1", "cpu", "freezer"), v2(tmp_path / "2", "cpu")
    shares, weight = tmp_path / "1/cpu/run/c1/cpu.shares", tmp_path / "2/run/c1/cpu.weight"
    for cpus, one, two in ((1.0, "1024", "100"), (2.5, "2560", "250"), (0.0, "2", "1"), (1e6, "262144", "10000")):
        for file in (shares, weight):
            file.write_text("")
        for groups in (v1_, v2_):
            groups.add_container("c1", limit=1000, pids=7, cpus=cpus)
        assert (shares.read_text(), weight.read_text()) == (one, two)
    v1(tmp_path / "3", "freezer").share("c1", 2.0)  # nobody weighs
    v2(tmp_path / "4", "memory").share("c1", 2.0)


@pytest.mark.parametrize("version", [1, 2])
def test_another_process_makes_the_same_groups_of_a_description(tmp_path: Path, version: int) -> None:
    groups = v1(tmp_path, "memory", "freezer") if version == 1 else v2(tmp_path, "memory pids")
    again = cgroups.restored(cgroups.described(groups))
    assert cgroups.described(again) == cgroups.described(groups)
    assert (again.version, again.name, again.controllers) == (version, "run", groups.controllers)


def test_only_other_runs_of_the_same_state_are_earlier(tmp_path: Path) -> None:
    v1(tmp_path, "memory", "freezer")
    for name in ("instainfer-a-1", "instainfer-a-2", "instainfer-ab-1", "instainfer-b-1", "system.slice"):
        (tmp_path / "memory" / name).mkdir(parents=True)
    (tmp_path / "freezer" / "instainfer-a-3").mkdir(parents=True)
    mounts = {"memory": str(tmp_path / "memory"), "freezer": str(tmp_path / "freezer")}
    mine = V1("instainfer-a-2", mounts)
    assert [left.name for left in cgroups.earlier(mine, "instainfer-a-")] == ["instainfer-a-1", "instainfer-a-3"]


def test_a_group_that_is_gone_is_empty(tmp_path: Path) -> None:
    groups = v1(tmp_path, "memory", "freezer")
    assert groups.pids("c9") == []
    assert groups.pids("c9", "i1") == []
    assert groups.oom_kills("c9", "i1") == 0
    groups.kill("c9")
    groups.remove_instance("c9", "i1")
    groups.remove_container("c9")


def test_mounts_of_both_versions_are_found(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 master:2 - cgroup cgroup rw,memory\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    assert cgroups.mounted(mountinfo) == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
        "": "/sys/fs/cgroup/unified",
    }
