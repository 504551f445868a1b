"""The store on a relational database: SQLite in WAL mode, or PostgreSQL, by a URL that SQLAlchemy takes.

Core only, no ORM: the rows are few and plain. Statements keep to what both know; what is one's alone sits in
`_sqlite_engine`, `_postgresql_engine` and `tables.Words`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import QueuePool

from instainfer.errors import BadSettings, NotFound, Unavailable
from instainfer.model import Activation, Attempt, FunctionSpec, Job, JobState, Key, Phases, Profile, Quota, Role
from instainfer.store import tables
from instainfer.store.base import Answered, LogLine

URL_HINT = "write postgresql://USER:PASSWORD@HOST/DATABASE, or leave it empty for a file in the data directory"
ADDRESS = "address"  # the key of a row of `meta`
SCHEMA = 3  # 2: keys and quotas, 3: jobs and answers, in tables of their own


_encode = msgspec.json.Encoder().encode
_COLUMNS, _MARKS = ", ".join(tables.FIELDS), ", ".join("?" * len(tables.FIELDS))
_INSERT = f"INSERT OR REPLACE INTO activations ({_COLUMNS}) VALUES ({_MARKS})"
_PHASES = list(tables.FIELDS).index("phases")


def _row(activation: Activation) -> tuple[Any, ...]:
    values = list(msgspec.structs.astuple(activation))
    values[_PHASES] = _encode(activation.phases).decode()
    return tuple(values)


def _job_row(job: Job) -> dict[str, Any]:
    values = msgspec.structs.asdict(job)
    values["key"] = job.key or None
    values["attempts"] = _encode(job.attempts).decode()
    values["problem"] = _encode(job.problem).decode()
    return values


def _job(row: Any) -> Job:
    values = dict(row._mapping)
    values["key"] = values["key"] or ""
    values["state"] = JobState(values["state"])
    values["attempts"] = _attempts.decode(values["attempts"])
    values["problem"] = msgspec.json.decode(values["problem"])
    return Job(**values)


_attempts = msgspec.json.Decoder(tuple[Attempt, ...])
#: Of a job, when its contents are not asked for.
_NO_BYTES = sa.literal(b"", sa.LargeBinary)
_phases = msgspec.json.Decoder(Phases)
_spec = msgspec.json.Decoder(FunctionSpec)
_profile = msgspec.json.Decoder(Profile)


class SqlStore:
    """`url`: "sqlite:///path/to/file.db", "sqlite://" for one in memory, or another that SQLAlchemy knows."""

    def __init__(self, url: str) -> None:
        try:
            self._url = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise BadSettings(f"store.url is no database's URL: {url!r}", hint=URL_HINT) from None
        self._writing = threading.Lock()  # SQLite lets one write at a time: wait here rather than poll its lock
        make = {"sqlite": _sqlite_engine, "postgresql": _postgresql_engine}.get(self._url.get_backend_name())
        if make is None:
            raise BadSettings(f"store.url: {self._url.get_backend_name()} is not supported", hint=URL_HINT)
        self._engine = make(self._url)
        self._token: int | None = None  # of the lease that fences what is written, where there is one
        try:
            self._open()
        except BaseException:
            self._engine.dispose()
            raise

    def _open(self) -> None:
        with self._write() as db:
            version = None
            if sa.inspect(db).has_table(tables.meta.name):
                version = db.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.key == "schema"))
            if version is not None and int(version) > SCHEMA:
                raise Unavailable(
                    f"the database {self._shown} was written by a newer version: schema {version}, not {SCHEMA}",
                    hint="upgrade instainfer, or give another --data-dir",
                )
            tables.every.create_all(db)
            if version is None:
                db.execute(sa.insert(tables.meta).values(key="schema", value=str(SCHEMA)))
            elif int(version) < SCHEMA:
                db.execute(sa.update(tables.meta).where(tables.meta.c.key == "schema").values(value=str(SCHEMA)))

    def announce(self, url: str) -> None:
        """Where the server that has this database is: gateways may look for it here."""
        with self._write() as db:
            db.execute(self._replace(tables.meta, "key").values(key=ADDRESS, value=url))

    def announced(self) -> str:
        """By the one that had it last; "" where none has said it."""
        with self._read() as db:
            return db.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.key == ADDRESS)) or ""

    def next_epoch(self) -> int:
        where = tables.meta.c.key == "epoch"
        with self._write() as db:
            known = db.scalar(sa.select(tables.meta.c.value).where(where).with_for_update())
            epoch = int(known or 0) + 1
            if known is None:
                db.execute(sa.insert(tables.meta).values(key="epoch", value=str(epoch)))
            else:
                db.execute(sa.update(tables.meta).where(where).values(value=str(epoch)))
        return epoch

    @property
    def _shown(self) -> str:
        if self._engine.dialect.name == "postgresql":
            return self._url.render_as_string(hide_password=True)
        return self._url.database or "in memory"

    @contextmanager
    def _write(self, *, durable: bool = False) -> Iterator[sa.Connection]:
        """A transaction; what it wrote is there after a kill, and where `durable`, after a power failure."""
        with self._translated(), self._writing, self._engine.connect() as db:
            db = db.execution_options(instainfer_write=True, instainfer_durable=durable)
            with db.begin():
                self._fenced(db)
                yield db

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.connect() as db:
            yield db

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            said = str(error.orig)
            lowered = said.lower()
            if self._engine.dialect.name == "postgresql":
                hint = "is the database server running, and does store.url have its address and password?"
            elif "not a database" in lowered or "malformed" in lowered:
                hint = (
                    "it is damaged: move it away and restore a copy (or start empty: deploy the functions again)"
                )
            elif "locked" in lowered or "busy" in lowered:
                hint = "another process holds it: is a second server running on this --data-dir?"
            elif "full" in lowered:
                hint = "free some space on its disk"
            elif "unable to open" in lowered or "readonly" in lowered:
                hint = "check that its folder is there and writable"
            else:
                hint = ""
            raise Unavailable(f"the database {self._shown} cannot be used: {said}", hint=hint) from error

    def _insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        return postgresql.insert(table) if self._engine.dialect.name == "postgresql" else sqlite.insert(table)

    def _replace(self, table: sa.Table, key: str) -> sa.Insert:
        row = self._insert(table)
        changed = {column.name: row.excluded[column.name] for column in table.columns if column.name != key}
        return row.on_conflict_do_update(index_elements=[key], set_=changed)

    # ---- whose database it is

    def _fenced(self, db: sa.Connection) -> None:
        """Nobody takes the lease before this transaction is over. Raises Unavailable when somebody has."""
        if self._token is not None and db.scalar(sa.select(tables.lease.c.token).with_for_update(read=True)) != (
            self._token
        ):
            raise Unavailable("another server has taken over the database", hint="ask that one")

    def _now(self, db: sa.Connection) -> float:
        """By the clock that all servers share."""
        if self._engine.dialect.name == "postgresql":
            return float(db.scalar(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))) or 0.0)
        return float(db.exec_driver_sql("SELECT (julianday('now') - 2440587.5) * 86400.0").scalar() or 0.0)

    def take_lease(self, holder: str, about: str, seconds: float) -> tuple[str, float] | None:
        self._token = None
        mine = {"holder": holder, "about": about}
        with self._write() as db:
            row = self._insert(tables.lease).values(name="server", token=0, until=0.0, **mine)
            db.execute(row.on_conflict_do_nothing())
            held = db.execute(sa.select(tables.lease).with_for_update()).one()
            now = self._now(db)
            if held.until > now and held.holder != holder:
                return held.about, held.until - now
            db.execute(sa.update(tables.lease).values(token=held.token + 1, until=now + seconds, **mine))
        self._token = held.token + 1
        return None

    def renew_lease(self, seconds: float) -> bool:
        token, self_ = tables.lease.c.token, self._token
        with self._translated(), self._writing, self._engine.begin() as db:  # not by `_write`: it would raise
            until = self._now(db) + seconds
            return bool(db.execute(sa.update(tables.lease).where(token == self_).values(until=until)).rowcount)

    def release_lease(self) -> None:
        with self._translated(), self._writing, self._engine.begin() as db:
            db.execute(sa.update(tables.lease).where(tables.lease.c.token == self._token).values(until=0.0))

    # ---- namespaces and functions

    def namespace(self, name: str) -> int:
        with self._write() as db:
            return self._namespace(db, name)

    def _namespace(self, db: sa.Connection, name: str) -> int:
        # Locked where the database locks rows: whoever numbers a function of it next waits.
        mine = sa.select(tables.namespaces.c.number).where(tables.namespaces.c.name == name).with_for_update()
        number = db.scalar(mine)
        if number is None:
            number = (db.scalar(sa.select(sa.func.max(tables.namespaces.c.number))) or 0) + 1
            db.execute(sa.insert(tables.namespaces).values(name=name, number=number))
        return int(number)

    def namespaces(self) -> dict[str, int]:
        with self._read() as db:
            rows = db.execute(
                sa.select(tables.namespaces.c.name, tables.namespaces.c.number).order_by(
                    tables.namespaces.c.number
                )
            )
            return {row.name: row.number for row in rows}

    def add_key(self, key: Key) -> None:
        with self._write() as db:
            self._namespace(db, key.namespace)
            db.execute(sa.insert(tables.keys).values(**msgspec.structs.asdict(key)))

    def issued(self) -> list[Key]:
        with self._read() as db:
            rows = db.execute(sa.select(tables.keys).order_by(tables.keys.c.created, tables.keys.c.id))
            return [Key(**{**row._mapping, "role": Role(row.role)}) for row in rows]

    def delete_key(self, id: str) -> None:
        with self._write() as db:
            if not db.execute(sa.delete(tables.keys).where(tables.keys.c.id == id)).rowcount:
                raise NotFound(f"there is no key {id!r}", hint="`instainfer namespace ls` shows those there are")

    def set_quota(self, namespace: str, quota: Quota) -> None:
        values = {"quota": _encode(quota).decode()}
        with self._write() as db:
            self._namespace(db, namespace)
            row = self._insert(tables.quotas).values(namespace=namespace, **values)
            db.execute(row.on_conflict_do_update(index_elements=["namespace"], set_=values))

    def quotas(self) -> dict[str, Quota]:
        with self._read() as db:
            rows = db.execute(sa.select(tables.quotas).order_by(tables.quotas.c.namespace))
            return {row.namespace: msgspec.json.decode(row.quota, type=Quota) for row in rows}

    def function_number(self, namespace: str, name: str) -> int:
        with self._write() as db:
            return self._function_number(db, namespace, name)

    def _function_number(self, db: sa.Connection, namespace: str, name: str) -> int:
        self._namespace(db, namespace)
        number = db.scalar(sa.select(tables.functions.c.number).where(*_is(tables.functions, namespace, name)))
        if number is None:
            last = db.scalar(
                sa.select(sa.func.max(tables.functions.c.number)).where(tables.functions.c.namespace == namespace)
            )
            number = (last or 0) + 1
            db.execute(sa.insert(tables.functions).values(namespace=namespace, name=name, number=number))
        return int(number)

    def add_version(self, spec: FunctionSpec) -> FunctionSpec:
        namespace, name = spec.namespace, spec.name
        with self._write() as db:
            self._function_number(db, namespace, name)
            last = db.scalar(
                sa.select(sa.func.max(tables.versions.c.version)).where(*_is(tables.versions, namespace, name))
            )
            spec = msgspec.structs.replace(spec, version=(last or 0) + 1)
            db.execute(
                sa.insert(tables.versions).values(
                    namespace=namespace,
                    name=name,
                    version=spec.version,
                    digest=spec.digest,
                    spec=_encode(spec).decode(),
                    created=spec.wall,
                )
            )
            now = sa.update(tables.functions).where(*_is(tables.functions, namespace, name))
            db.execute(now.values(current=spec.version, deleted=False))
        return spec

    def functions(self, namespace: str | None = None) -> list[tuple[FunctionSpec, Profile | None]]:
        f, v, p = tables.functions, tables.versions, tables.profiles
        chosen = sa.and_(v.c.namespace == f.c.namespace, v.c.name == f.c.name, v.c.version == f.c.current)
        known = sa.and_(p.c.namespace == v.c.namespace, p.c.name == v.c.name, p.c.version == v.c.version)
        query = sa.select(v.c.spec, p.c.profile).select_from(f.join(v, chosen).outerjoin(p, known))
        query = query.where(f.c.deleted.is_(False)).order_by(f.c.namespace, f.c.name)
        if namespace is not None:
            query = query.where(f.c.namespace == namespace)
        with self._read() as db:
            rows = db.execute(query).all()
        return [
            (_spec.decode(row.spec), None if row.profile is None else _profile.decode(row.profile)) for row in rows
        ]

    def versions(self, namespace: str, name: str) -> list[FunctionSpec]:
        with self._read() as db:
            self._must_exist(db, namespace, name)
            query = (
                sa.select(tables.versions.c.spec)
                .where(*_is(tables.versions, namespace, name))
                .order_by(tables.versions.c.version)
            )
            return [_spec.decode(text) for text in db.scalars(query)]

    def set_current(self, namespace: str, name: str, version: int) -> FunctionSpec:
        with self._write() as db:
            self._must_exist(db, namespace, name)
            query = sa.select(tables.versions.c.version, tables.versions.c.spec).where(
                *_is(tables.versions, namespace, name)
            )
            there = {row.version: row.spec for row in db.execute(query.order_by(tables.versions.c.version))}
            if version not in there:
                raise NotFound(
                    f"{namespace}/{name} has no version {version}",
                    hint=f"there are {', '.join(map(str, there))}",
                    function=f"{namespace}/{name}",
                )
            db.execute(
                sa.update(tables.functions).where(*_is(tables.functions, namespace, name)).values(current=version)
            )
            return _spec.decode(there[version])

    def delete_function(self, namespace: str, name: str) -> None:
        with self._write() as db:
            self._must_exist(db, namespace, name)
            db.execute(
                sa.update(tables.functions).where(*_is(tables.functions, namespace, name)).values(deleted=True)
            )
            db.execute(sa.delete(tables.pins).where(*_is(tables.pins, namespace, name)))

    def _must_exist(self, db: sa.Connection, namespace: str, name: str) -> None:
        f = tables.functions.c
        found = sa.select(f.number).where(
            *_is(tables.functions, namespace, name), f.deleted.is_(False), f.current > 0
        )
        if db.scalar(found) is None:
            raise NotFound(
                f"there is no function {name!r} in namespace {namespace!r}",
                hint="`instainfer ls` shows those there are",
                function=f"{namespace}/{name}",
            )

    def put_profile(self, namespace: str, name: str, version: int, profile: Profile, wall: float) -> None:
        values = {"profile": _encode(profile).decode(), "updated": wall}
        with self._write() as db:
            self._must_exist(db, namespace, name)
            row = self._insert(tables.profiles).values(namespace=namespace, name=name, version=version, **values)
            db.execute(row.on_conflict_do_update(index_elements=["namespace", "name", "version"], set_=values))

    def set_pin(self, namespace: str, name: str, pinned: bool) -> None:
        with self._write() as db:
            if pinned:
                self._must_exist(db, namespace, name)
                db.execute(
                    self._insert(tables.pins).values(namespace=namespace, name=name).on_conflict_do_nothing()
                )
            else:
                db.execute(sa.delete(tables.pins).where(*_is(tables.pins, namespace, name)))

    def pins(self) -> list[tuple[str, str]]:
        with self._read() as db:
            rows = db.execute(
                sa.select(tables.pins.c.namespace, tables.pins.c.name).order_by(
                    tables.pins.c.namespace, tables.pins.c.name
                )
            )
            return [(row.namespace, row.name) for row in rows]

    def set_drained(self, node: str, drained: bool) -> None:
        with self._write() as db:
            if drained:
                db.execute(self._insert(tables.drained).values(node=node).on_conflict_do_nothing())
            else:
                db.execute(sa.delete(tables.drained).where(tables.drained.c.node == node))

    def drained(self) -> list[str]:
        with self._read() as db:
            return list(db.scalars(sa.select(tables.drained.c.node).order_by(tables.drained.c.node)))

    # ---- activations and logs

    def add_records(
        self, activations: Sequence[Activation], logs: Sequence[LogLine] = (), answers: Sequence[Answered] = ()
    ) -> None:
        lines = [msgspec.structs.asdict(line) for line in logs]
        with self._write() as db:
            if activations and self._engine.dialect.name == "sqlite":
                # Thousands a second: the driver's own executemany holds the GIL for a third of the time that
                # SQLAlchemy's takes, which looks every value of every row up by its column's name.
                db.exec_driver_sql(_INSERT, [_row(activation) for activation in activations])
            elif activations:
                names = list(tables.FIELDS)
                rows = [dict(zip(names, _row(activation), strict=True)) for activation in activations]
                db.execute(self._replace(tables.activations, "id"), rows)
            if lines:
                db.execute(sa.insert(tables.logs), lines)
            if answers:
                rows = [msgspec.structs.asdict(answer) for answer in answers]
                db.execute(self._replace(tables.answers, "activation"), rows)

    def activations(
        self,
        namespace: str | None = None,
        function: str | None = None,
        *,
        limit: int = 50,
        skip: int = 0,
        since: float | None = None,
        upto: float | None = None,
    ) -> list[Activation]:
        c = tables.activations.c
        query = sa.select(tables.activations).order_by(c.wall.desc(), c.id.desc()).limit(limit).offset(skip)
        if namespace is not None:
            query = query.where(c.namespace == namespace)
        if function is not None:
            query = query.where(c.function == function)
        if since is not None:
            query = query.where(c.wall >= since)
        if upto is not None:
            query = query.where(c.wall <= upto)
        with self._read() as db:
            return [_activation(row) for row in db.execute(query)]

    def activation(self, id: str) -> Activation:
        with self._read() as db:
            row = db.execute(sa.select(tables.activations).where(tables.activations.c.id == id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no activation {id!r}", hint="`instainfer activations` shows the latest")
        return _activation(row)

    def logs(self, activation: str) -> list[LogLine]:
        c = tables.logs.c
        query = (
            sa.select(c.activation, c.stream, c.wall, c.text).where(c.activation == activation).order_by(c.number)
        )
        with self._read() as db:
            return [LogLine(**row._mapping) for row in db.execute(query)]

    def answer(self, activation: str) -> Answered | None:
        with self._read() as db:
            row = db.execute(
                sa.select(tables.answers).where(tables.answers.c.activation == activation)
            ).one_or_none()
        return None if row is None else Answered(**row._mapping)

    # ---- jobs

    def save_jobs(self, jobs: Sequence[Job]) -> list[bool]:
        row = self._insert(tables.jobs)
        changes = ("state", "due", "attempts", "answer_type", "answer", "problem", "start", "finished")
        # What is done is not run again: its body, kept so far, is of no more use. A dead one may be.
        body = sa.case((row.excluded["state"] == JobState.DONE.value, sa.literal(b"")), else_=tables.jobs.c.body)
        known = row.on_conflict_do_update(
            index_elements=["id"], set_={**{name: row.excluded[name] for name in changes}, "body": body}
        )
        same = sa.select(tables.jobs.c.id)
        saved = []
        with self._write(durable=True) as db:
            for job in jobs:
                if job.key:
                    c = tables.jobs.c
                    taken = db.scalar(
                        same.where(*_of_key(job.namespace, job.function, job.key), c.id != job.id).limit(1)
                    )
                    if taken is not None:
                        saved.append(False)
                        continue
                db.execute(known, _job_row(job))
                saved.append(True)
        return saved

    def job(self, id: str) -> Job:
        with self._read() as db:
            row = db.execute(sa.select(tables.jobs).where(tables.jobs.c.id == id)).one_or_none()
        if row is None:
            raise NotFound(
                f"there is no job {id!r}", hint="jobs that are over are kept for records.keep_answers_s"
            )
        return _job(row)

    def job_by_key(self, namespace: str, function: str, key: str) -> Job | None:
        with self._read() as db:
            row = db.execute(sa.select(tables.jobs).where(*_of_key(namespace, function, key))).one_or_none()
        return None if row is None else _job(row)

    def unfinished_jobs(self) -> list[Job]:
        there = [_NO_BYTES.label(c.name) if c.name == "body" else c for c in tables.jobs.columns]
        open_states = (JobState.WAITING.value, JobState.RUNNING.value)
        query = (
            sa.select(*there)
            .where(tables.jobs.c.state.in_(open_states))
            .order_by(tables.jobs.c.created, tables.jobs.c.id)
        )
        with self._read() as db:
            return [_job(row) for row in db.execute(query)]

    def jobs(
        self, namespace: str | None = None, *, state: JobState | None = None, limit: int = 50, skip: int = 0
    ) -> list[Job]:
        there = [_NO_BYTES.label(c.name) if c.name in ("body", "answer") else c for c in tables.jobs.columns]
        query = (
            sa.select(*there)
            .order_by(tables.jobs.c.created.desc(), tables.jobs.c.id.desc())
            .limit(limit)
            .offset(skip)
        )
        if namespace is not None:
            query = query.where(tables.jobs.c.namespace == namespace)
        if state is not None:
            query = query.where(tables.jobs.c.state == state.value)
        with self._read() as db:
            return [_job(row) for row in db.execute(query)]

    def prune_answers(self, before: float) -> None:
        over = tables.jobs.c.state.in_((JobState.DONE.value, JobState.DEAD.value))
        with self._write() as db:
            db.execute(sa.delete(tables.answers).where(tables.answers.c.wall < before))
            db.execute(sa.delete(tables.jobs).where(over, tables.jobs.c.finished < before))

    def prune(self, *, keep_activations: int, keep_s: float, wall: float) -> int:
        c = tables.activations.c
        newest = sa.select(c.wall, c.id).order_by(c.wall.desc(), c.id.desc()).offset(keep_activations).limit(1)
        with self._write() as db:
            edge = db.execute(newest).one_or_none()  # the newest that is one too many
            old = c.wall < wall - keep_s
            if edge is not None:
                old = sa.or_(old, c.wall < edge.wall, sa.and_(c.wall == edge.wall, c.id <= edge.id))
            gone = db.execute(sa.delete(tables.activations).where(old)).rowcount
            # Lines without an activation also go when old, be it one that was dropped or is still to come.
            owned = sa.exists().where(tables.activations.c.id == tables.logs.c.activation)
            oldest = db.scalar(sa.select(sa.func.min(c.wall)))
            db.execute(
                sa.delete(tables.logs).where(
                    tables.logs.c.wall < (wall - keep_s if oldest is None else oldest), ~owned
                )
            )
            return gone

    def close(self) -> None:
        self._engine.dispose()


def _is(table: sa.Table, namespace: str, name: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.namespace == namespace, table.c.name == name


def _of_key(namespace: str, function: str, key: str) -> tuple[sa.ColumnElement[bool], ...]:
    c = tables.jobs.c
    return c.namespace == namespace, c.function == function, c.key == key


def _activation(row: Any) -> Activation:
    values = dict(row._mapping)
    values["phases"] = _phases.decode(values["phases"])
    return Activation(**values)


def _postgresql_engine(url: sa.URL) -> sa.Engine:
    try:
        # A connection that was lost since its last use is replaced before the next: the server may restart.
        return sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    except ModuleNotFoundError:
        raise BadSettings(
            "PostgreSQL needs a driver that is not installed", hint="pip install 'instainfer[postgres]'"
        ) from None


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    memory = url.database in (None, "", ":memory:")
    if not memory:
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    # A database in memory is its one connection's: whoever comes second waits for it.
    sizes: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if memory else {}
    engine = sa.create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False}, **sizes)

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself: `_began` does
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _began(db: sa.Connection) -> None:
        # IMMEDIATE: a transaction that reads first and writes later would fail at once, without waiting,
        # if another had written in between.
        options = db.get_execution_options()
        if options.get("instainfer_write"):
            db.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('instainfer_durable') else 'NORMAL'}")
            db.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            db.exec_driver_sql("BEGIN")

    return engine
