"""Every store keeps the contract of store/base.py; the batch writer loses only what it may."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instainfer.errors import NotFound, Unavailable
from instainfer.model import (
    Activation,
    Attempt,
    Costs,
    FunctionSpec,
    Job,
    JobState,
    Key,
    Phases,
    Profile,
    Quota,
    Role,
    Style,
)
from instainfer.store.base import Answered, LogLine, Store
from instainfer.store.sql import SCHEMA, SqlStore
from instainfer.store.writer import BatchWriter
from tests.contract.postgres import Postgres, running

_databases = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite file", "sqlite memory", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.make(f"test{next(_databases)}")
    else:
        url = {"sqlite file": f"sqlite:///{tmp_path}/deep/state.db", "sqlite memory": "sqlite://"}[request.param]
    made = SqlStore(url)
    yield made
    made.close()


def spec(namespace: str = "ns", name: str = "f", **more: Any) -> FunctionSpec:
    values: dict[str, Any] = {
        "version": 0,
        "digest": "sha256:00",
        "style": Style.MODULE,
        "entry": "main:handler",
        "memory": 1 << 28,
        "timeout_s": 60.0,
        "concurrency": 1,
        "environment": "",
        "python": "3.11",
    }
    return FunctionSpec(namespace=namespace, name=name, **{**values, **more})


def activation(id: str, wall: float = 1.0, *, namespace: str = "ns", function: str = "f") -> Activation:
    return Activation(
        id=id,
        namespace=namespace,
        function=function,
        version=1,
        start="warm",
        status="ok",
        wall=wall,
        e2e_s=0.25,
        phases=Phases(queue=0.1, imports=0.2),
    )


def line(of: str, text: str, wall: float = 1.0) -> LogLine:
    return LogLine(activation=of, stream="stdout", wall=wall, text=text)


# ---- functions


def test_numbers_are_stable_unique_and_never_reused(store: Store) -> None:
    assert [store.namespace(name) for name in ("a", "b", "a", "c")] == [1, 2, 1, 3]
    assert store.namespaces() == {"a": 1, "b": 2, "c": 3}
    assert [store.function_number("a", name) for name in ("f", "g", "f")] == [1, 2, 1]
    assert store.function_number("b", "f") == 1
    store.add_version(spec("a", "g"))
    store.delete_function("a", "g")
    assert store.function_number("a", "h") == 3
    assert store.function_number("a", "g") == 2
    assert store.function_number("new", "f") == 1


def test_epochs_rise(store: Store) -> None:
    first = store.next_epoch()
    assert [store.next_epoch(), store.next_epoch()] == [first + 1, first + 2]


def test_keys_and_quotas(store: Store) -> None:
    old = Key(id="1", namespace="a", role=Role.INVOKE, hash="00", created=1.0)
    new = Key(id="0", namespace="b", role=Role.ADMIN, hash="11", created=2.0)
    store.add_key(new)
    store.add_key(old)
    assert store.issued() == [old, new]
    assert set(store.namespaces()) == {"a", "b"}
    store.delete_key("1")
    assert store.issued() == [new]
    with pytest.raises(NotFound, match="'1'"):
        store.delete_key("1")
    store.set_quota("a", Quota(functions=3))
    store.set_quota("c", Quota(memory=1 << 40))
    store.set_quota("a", Quota(requests_per_minute=60))
    assert store.quotas() == {"a": Quota(requests_per_minute=60), "c": Quota(memory=1 << 40)}
    assert store.namespaces()["c"]


def test_versions(store: Store) -> None:
    first = store.add_version(spec(variables={"A": "1"}, wall=5.0))
    second = store.add_version(spec(digest="sha256:11", version=99))
    assert (first.version, second.version) == (1, 2)
    assert store.versions("ns", "f") == [first, second]
    assert store.functions() == [(second, None)]
    assert store.set_current("ns", "f", 1) == first
    assert store.functions("ns") == [(first, None)]
    assert store.functions("other") == []
    with pytest.raises(NotFound) as caught:
        store.set_current("ns", "f", 7)
    assert "1, 2" in caught.value.hint
    assert caught.value.function == "ns/f"
    third = store.add_version(spec())
    assert third.version == 3
    assert store.functions() == [(third, None)]


def test_delete_and_deploy_again(store: Store) -> None:
    store.add_version(spec())
    store.set_pin("ns", "f", True)
    store.add_records([activation("1")])
    store.delete_function("ns", "f")
    assert store.functions() == []
    assert store.pins() == []
    assert store.activation("1").function == "f"
    for call in (
        lambda: store.versions("ns", "f"),
        lambda: store.delete_function("ns", "f"),
        lambda: store.set_current("ns", "f", 1),
        lambda: store.set_pin("ns", "f", True),
        lambda: store.put_profile("ns", "f", 1, Profile(costs=Costs()), 1.0),
    ):
        with pytest.raises(NotFound, match="'f'"):
            call()
    assert store.add_version(spec()).version == 2
    assert len(store.functions()) == 1


def test_profiles_belong_to_a_version(store: Store) -> None:
    one = store.add_version(spec())
    profile = Profile(costs=Costs(load_s=2.5), modules=("numpy", "ünïcode"), answer="{}")
    store.put_profile("ns", "f", 1, profile, 10.0)
    better = msgspec.structs.replace(profile, tasks=4)
    store.put_profile("ns", "f", 1, better, 11.0)
    assert store.functions() == [(one, better)]
    two = store.add_version(spec())
    assert store.functions() == [(two, None)]
    store.set_current("ns", "f", 1)
    assert store.functions() == [(one, better)]


def test_pins(store: Store) -> None:
    for name in ("g", "f"):
        store.add_version(spec(name=name))
        store.set_pin("ns", name, True)
        store.set_pin("ns", name, True)
    assert store.pins() == [("ns", "f"), ("ns", "g")]
    store.set_pin("ns", "g", False)
    store.set_pin("ns", "g", False)
    assert store.pins() == [("ns", "f")]


def test_drained_nodes(store: Store) -> None:
    for node in ("b", "a", "b"):
        store.set_drained(node, True)
    assert store.drained() == ["a", "b"]
    store.set_drained("b", False)
    store.set_drained("c", False)
    assert store.drained() == ["a"]


# ---- activations


def test_activations_are_listed_newest_first(store: Store) -> None:
    for n in range(6):
        store.add_records([activation(f"id{n}", float(n), namespace="ab"[n % 2], function="fg"[n // 3])])

    def ids(*arguments: Any, **options: Any) -> list[str]:
        return [found.id for found in store.activations(*arguments, **options)]

    assert ids() == ["id5", "id4", "id3", "id2", "id1", "id0"]
    assert ids("a") == ["id4", "id2", "id0"]
    assert ids("a", "f") == ["id2", "id0"]
    assert ids(limit=2, skip=1) == ["id4", "id3"]
    assert ids(since=2.0, upto=4.0) == ["id4", "id3", "id2"]
    assert ids("nobody") == []
    with pytest.raises(NotFound, match="absent"):
        store.activation("absent")


def test_adding_again_replaces(store: Store) -> None:
    """An attempt follows another one under the same id."""
    first = activation("x", 1.0)
    last = msgspec.structs.replace(first, wall=3.0)
    store.add_records([first, msgspec.structs.replace(first, wall=2.0)])
    store.add_records([last, activation("y")])
    store.add_records([last])
    assert store.activation("x") == last
    assert len(store.activations()) == 2
    store.add_records([], [])


def test_answers(store: Store) -> None:
    one = Answered(activation="x", wall=1.0, type="text/plain", body=b"\0one")
    store.add_records([], [], [one])
    assert store.answer("x") == one
    assert store.answer("y") is None
    again = msgspec.structs.replace(one, body=b"")
    store.add_records([], [], [again])
    assert store.answer("x") == again
    store.prune_answers(before=2.0)
    assert store.answer("x") is None


# ---- jobs


def job(id: str, created: float = 1.0, **more: Any) -> Job:
    values: dict[str, Any] = {"namespace": "ns", "function": "f", "content_type": "", "body": b"\0in"}
    return Job(id=id, created=created, **{**values, **more})


def test_jobs(store: Store) -> None:
    first, second = job("1", 1.0), job("2", 2.0, namespace="other")
    assert store.save_jobs([second, first]) == [True, True]
    assert store.job("1") == first
    nothing = msgspec.structs.replace(first, body=b"")
    assert store.unfinished_jobs() == [nothing, msgspec.structs.replace(second, body=b"")]
    done = msgspec.structs.replace(
        first,
        state=JobState.DONE,
        attempts=(Attempt(began=1.0, ended=2.0, status="ok"),),
        answer=b"\0out",
        answer_type="x/y",
        start="warm",
        problem={"detail": "é"},
        finished=5.0,
    )
    assert store.save_jobs([done]) == [True]
    assert store.job("1") == msgspec.structs.replace(done, body=b"")  # it is not run again
    dead = msgspec.structs.replace(second, state=JobState.DEAD, body=b"")
    waiting = msgspec.structs.replace(second, body=b"")
    assert store.save_jobs([dead]) == [True]
    assert store.save_jobs([waiting]) == [True]  # a dead one may be given its attempts again
    assert store.job("2") == second
    assert [one.id for one in store.unfinished_jobs()] == ["2"]
    assert [one.id for one in store.jobs()] == ["2", "1"]
    assert [one.id for one in store.jobs("ns", state=JobState.DONE)] == ["1"]
    assert store.jobs("ns", state=JobState.DEAD) == store.jobs(skip=2) == []
    assert [one.answer for one in store.jobs(limit=1, skip=1)] == [b""]
    store.prune_answers(before=6.0)
    assert [one.id for one in store.jobs()] == ["2"]
    with pytest.raises(NotFound):
        store.job("1")


def test_a_key_is_one_jobs(store: Store) -> None:
    first = job("1", key="k", digest="00")
    assert store.save_jobs([first, job("2", key="k"), job("3", key="k", function="g"), job("4"), job("5")]) == [
        True, False, True, True, True,
    ]  # fmt: skip
    assert store.job_by_key("ns", "f", "k") == first
    assert store.job_by_key("ns", "f", "other") is None
    assert store.save_jobs([job("2", key="k")]) == [False]
    changed = msgspec.structs.replace(first, state=JobState.RUNNING)
    assert store.save_jobs([changed]) == [True]
    assert store.job_by_key("ns", "f", "k") == changed


def test_logs_keep_their_order(store: Store) -> None:
    store.add_records([], [line("x", "one", 9.0), line("y", "other"), line("x", "two\u2028\0", 1.0)])
    store.add_records([activation("x")], [line("x", "three")])
    assert [found.text for found in store.logs("x")] == ["one", "two\u2028\0", "three"]
    assert store.logs("nobody") == []


def test_prune(store: Store) -> None:
    store.add_records(
        [activation(f"{n:02}", float(n)) for n in range(10)], [line(f"{n:02}", "x", float(n)) for n in range(10)]
    )
    assert store.prune(keep_activations=100, keep_s=7.0, wall=10.0) == 3  # 0, 1, 2
    assert store.prune(keep_activations=4, keep_s=100.0, wall=10.0) == 3
    assert [found.id for found in store.activations()] == ["09", "08", "07", "06"]
    assert store.logs("05") == []
    assert len(store.logs("06")) == 1
    assert store.prune(keep_activations=4, keep_s=100.0, wall=10.0) == 0
    store.add_records([activation(f"t{n}", 9.0) for n in range(5)])
    assert store.prune(keep_activations=4, keep_s=100.0, wall=10.0) == 5  # ties: ordered by id
    assert [found.id for found in store.activations()] == ["t4", "t3", "t2", "t1"]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
times = st.floats(0, 1e10, allow_nan=False)
anything = st.builds(
    Activation,
    id=st.uuids().map(str),
    namespace=texts,
    function=texts,
    version=st.integers(0, 2**31),
    start=texts,
    status=texts,
    wall=times,
    e2e_s=times,
    phases=st.builds(Phases, queue=times, imports=times, inference=times),
    container=texts,
    instance=texts,
    request=st.integers(0, 2**62),
    error=texts,
    trace=texts,
)


@given(st.lists(anything, max_size=3))
@settings(deadline=None, max_examples=50)
def test_an_activation_comes_back_as_it_went(given: list[Activation]) -> None:
    store = SqlStore("sqlite://")
    store.add_records(given)
    assert [store.activation(one.id) for one in given] == given
    store.close()


def test_threads_at_once(store: Store) -> None:
    wrong: list[BaseException] = []

    def work(who: int) -> None:
        try:
            for n in range(20):
                store.add_version(spec(name="shared"))
                store.add_records([activation(f"{who}-{n}")])
                store.function_number("ns", f"{who}-{n}")
                store.activations("ns", limit=3)
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [found.version for found in store.versions("ns", "shared")] == list(range(1, 61))
    numbers = {store.function_number("ns", f"{who}-{n}") for who in range(3) for n in range(20)}
    assert len(numbers) == 60
    assert len(store.activations(limit=100)) == 60


# ---- the file


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    one = SqlStore(url)
    kept = one.add_version(spec())
    one.close()
    two = SqlStore(url)
    assert two.functions() == [(kept, None)]
    two.close()


def test_a_database_of_an_earlier_schema_is_brought_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    SqlStore(url).close()
    with sqlite3.connect(tmp_path / "s.db") as database:
        database.execute("DROP TABLE keys")
        database.execute("DROP TABLE quotas")
        database.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    database.close()
    again = SqlStore(url)
    assert again.issued() == []
    again.close()
    with sqlite3.connect(tmp_path / "s.db") as database:
        (version,) = database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    database.close()
    assert version == str(SCHEMA)


def test_damaged_newer_and_unreachable_databases(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(Unavailable, match=r"bad\.db") as caught:
        SqlStore(f"sqlite:///{tmp_path}/bad.db")
    assert "move it away" in caught.value.hint
    SqlStore(f"sqlite:///{tmp_path}/new.db").close()
    with sqlite3.connect(tmp_path / "new.db") as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    database.close()
    with pytest.raises(Unavailable, match="newer") as caught:
        SqlStore(f"sqlite:///{tmp_path}/new.db")
    assert "upgrade" in caught.value.hint
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(Unavailable, match="unable to open") as caught:
        SqlStore(f"sqlite:///{tmp_path}/folder.db")
    assert "writable" in caught.value.hint


# ---- the batch writer


def test_batches_are_saved_and_readable_before(store: Store) -> None:
    writer = BatchWriter(store, every_s=60.0)
    for n in range(5000):
        writer.put(activation(f"{n:05}", float(n)))
    writer.put(line("00001", "hello"))
    assert writer.pending("00001") == activation("00001", 1.0)
    assert writer.pending("absent") is None
    assert writer.flush()
    assert (len(writer), writer.dropped, writer.pending("00001")) == (0, 0, None)
    assert store.activation("04999").wall == 4999.0
    assert len(store.logs("00001")) == 1
    writer.put(activation("last"))
    writer.close()
    assert store.activation("last").id == "last"


class Refusing:
    """A store that is locked until told otherwise. Of the protocol, only what the writer calls."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.tried = threading.Event()
        self.saved: list[Activation] = []

    def add_records(
        self, activations: Sequence[Activation], logs: Sequence[LogLine], answers: Sequence[Answered]
    ) -> None:
        self.tried.set()
        if not self.open.is_set():
            raise Unavailable("database is locked")
        self.saved += activations


def test_a_locked_database_is_tried_again_and_the_oldest_dropped(caplog: pytest.LogCaptureFixture) -> None:
    store = Refusing()
    writer = BatchWriter(store, every_s=0.0, most=10)  # type: ignore[arg-type] # the part of a Store that it uses
    with caplog.at_level(logging.WARNING, "instainfer.store"):
        writer.put(activation("first"))
        assert store.tried.wait(10)  # the writer holds `first` now and tries on
        for n in range(25):
            writer.put(activation(f"{n:02}"))
        assert writer.dropped == 15
        assert writer.pending("14") is None
        assert writer.pending("15") is not None
        store.open.set()
        assert writer.flush()
    assert [one.id for one in store.saved] == ["first", *(f"{n:02}" for n in range(15, 25))]
    assert len(writer) == 0
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "dropped" in text]) == 1
    assert len([text for text in said if "not saved yet" in text]) == 1
    writer.close()


def test_a_record_that_cannot_be_kept_takes_no_other_with_it(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    writer = BatchWriter(store, every_s=60.0)
    for text in ("a", "\ud800", "b"):
        writer.put(line("x", text))
    assert writer.flush()
    writer.close()
    assert [found.text for found in store.logs("x")] == ["a", "b"]
    assert writer.dropped == 1
    assert "cannot be saved" in caplog.text


def test_closing_gives_up_in_the_end_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    store = Refusing()
    writer = BatchWriter(store, every_s=0.0)  # type: ignore[arg-type] # as above
    writer.put(activation("x"))
    writer.close(timeout_s=0.05)
    assert writer.dropped == 1
    assert "could not be saved" in caplog.text


CHILD = """
import itertools, sys
from instainfer.store.sql import SqlStore
from instainfer.store.writer import BatchWriter
from tests.contract.test_store import activation
writer = BatchWriter(SqlStore(sys.argv[1]), every_s=0.0)
for n in itertools.count():
    writer.put(activation(f"{n:09}", float(n)))
    if n % 3000 == 2999:
        writer.flush()
        print(n, flush=True)
"""


@pytest.mark.slow
def test_kill_during_batches(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout is not None
    promised = [int(child.stdout.readline()) for _ in range(3)][-1]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = SqlStore(url)
    found = {one.id for one in store.activations(limit=10**9)}
    assert {f"{n:09}" for n in range(promised + 1)} <= found
    assert found == {f"{n:09}" for n in range(len(found))}  # batches are whole and in order
    store.add_records([activation("after")])
    assert store.activation("after").id == "after"
    store.close()
