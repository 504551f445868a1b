"""The tables of `store/sql.py`: rows few and plain, what is read whole kept as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from instainfer.model import Activation, Phases


class Words(sa.types.TypeDecorator[str]):
    """Text that a function wrote: PostgreSQL's has no NUL, its bytes have."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        return dialect.type_descriptor(sa.LargeBinary() if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:
        return value.encode() if value is not None and dialect.name == "postgresql" else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> str | None:
        return bytes(value).decode() if isinstance(value, bytes | memoryview) else value


every = sa.MetaData()
meta = sa.Table("meta", every, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text))
namespaces = sa.Table(
    "namespaces",
    every,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False, unique=True),
)
keys = sa.Table(
    "keys",
    every,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name"), nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
quotas = sa.Table(
    "quotas",
    every,
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name"), primary_key=True),
    sa.Column("quota", sa.Text, nullable=False),
)
functions = sa.Table(
    "functions",
    every,
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("current", sa.Integer, nullable=False, default=0),  # 0: numbered, never deployed
    sa.Column("deleted", sa.Boolean, nullable=False, default=False),
    sa.UniqueConstraint("namespace", "number"),
)
_of_function = ("functions.namespace", "functions.name")
versions = sa.Table(
    "versions",
    every,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(("namespace", "name"), _of_function),
)
profiles = sa.Table(
    "profiles",
    every,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(("namespace", "name"), _of_function),
)
pins = sa.Table(
    "pins",
    every,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.ForeignKeyConstraint(("namespace", "name"), _of_function),
)
drained = sa.Table("drained", every, sa.Column("node", sa.Text, primary_key=True))
_KINDS: dict[type, type[sa.types.TypeEngine[Any]]] = {
    str: sa.Text,
    int: sa.BigInteger,
    float: sa.Float,
    Phases: sa.Text,
}
FIELDS = {field.name: field.type for field in msgspec.structs.fields(Activation)}
_SAID = ("error", "hint", "trace")  # fields whose text is a function's
activations = sa.Table(
    "activations",
    every,
    *(
        sa.Column(name, Words if name in _SAID else _KINDS[kind], primary_key=name == "id", nullable=False)
        for name, kind in FIELDS.items()
    ),
    sa.Index("activations_by_namespace", "namespace", sa.text("wall DESC")),
    sa.Index("activations_by_function", "namespace", "function", sa.text("wall DESC")),
    sa.Index("activations_by_wall", "wall"),
)
logs = sa.Table(  # no foreign key: lines may be written before the activation that they belong to
    "logs",
    every,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("activation", sa.Text, nullable=False, index=True),
    sa.Column("stream", sa.Text, nullable=False),
    sa.Column("wall", sa.Float, nullable=False),
    sa.Column("text", Words, nullable=False),
)

lease = sa.Table(  # of one row
    "lease",
    every,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("until", sa.Float, nullable=False),  # by the database's clock
)
answers = sa.Table(
    "answers",
    every,
    sa.Column("activation", sa.Text, primary_key=True),
    sa.Column("wall", sa.Float, nullable=False, index=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
jobs = sa.Table(
    "jobs",
    every,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("key", sa.Text),  # NULL where there is none: NULLs are not equal to each other
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("due", sa.Float, nullable=False),
    sa.Column("attempts", sa.Text, nullable=False),
    sa.Column("answer_type", sa.Text, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("problem", sa.Text, nullable=False),
    sa.Column("start", sa.Text, nullable=False),
    sa.Column("finished", sa.Float, nullable=False),
    sa.UniqueConstraint("namespace", "function", "key"),
    sa.Index("jobs_by_state", "state", "created"),
    sa.Index("jobs_by_namespace", "namespace", sa.text("created DESC")),
)
