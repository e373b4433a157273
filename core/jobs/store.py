"""The ledger: what has been promised, in SQL. A 202 leaves only after its row is committed here.

A job is claimed by compare-and-set: whoever takes it raises `token` and holds a lease until `lease_until`; every later
write names the token and does nothing once the job was taken away (fencing). A job that has more slices to go is put
back without an owner, so that jobs take turns. One terminal state each.

Works on SQLite (WAL, `BEGIN IMMEDIATE`) and on any database SQLAlchemy writes `UPDATE … WHERE` for.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.jobs import claim_order, schema_upgrade
from core.jobs.claim_order import ClaimOrder
from core.transaction import transaction

SCHEMA_VERSION = 1
TERMINAL = ("succeeded", "failed", "cancelled")
API_OWNER_PREFIX = "api-"
"""How names of API processes begin, which hold jobs but do not run them: their death says nothing against a job."""

TRAINING = "training"
AUXILIARY_KINDS = ("estimate", "import", "publication")
"""Kinds of jobs that a training worker does beside its training: each takes some seconds in a process of its own."""

SMALL = 16
"""Jobs of at most this many rows share a forward pass with others of their kind."""

_IDS_A_QUERY = 500

_metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("owner", sa.String(80), nullable=False, default=""),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("model", sa.String(120), nullable=False),
    sa.Column("version", sa.String(40), nullable=False),
    sa.Column("method", sa.String(40), nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),  # what the client asked, without pixels, as JSON
    sa.Column("request_id", sa.String(120), nullable=False, default=""),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("items", sa.LargeBinary),  # the uploaded images, packed; None where there are none or they lie in a blob
    sa.Column("items_blob", sa.String(200)),
    sa.Column("per", sa.Integer, nullable=False, default=1),
    sa.Column("next_row", sa.Integer, nullable=False, default=0),
    sa.Column("state", sa.LargeBinary),  # what an unfinished slice carries on
    sa.Column("progress", sa.Float, nullable=False, default=0.0),
    sa.Column("token", sa.Integer, nullable=False, default=0),
    sa.Column("lease_owner", sa.String(80)),
    sa.Column("lease_until", sa.Float),
    sa.Column("shared", sa.Boolean, nullable=False, default=False),  # claimed together with other jobs
    sa.Column("alone", sa.Boolean, nullable=False, default=False),  # must run without others: it may kill its worker
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("turn", sa.Float, nullable=False),  # when it last became claimable; oldest goes first
    sa.Column("problem", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("expired", sa.Boolean, nullable=False, default=False),
    # of a job whose result could not be stored: when it may be claimed again, since when it waits, why, and for what
    sa.Column("not_before", sa.Float),
    sa.Column("blocked_since", sa.Float),
    sa.Column("blocked_reason", sa.Text),
    sa.Column("blocked_bytes", sa.BigInteger),
    sa.Index("jobs_turn", "status", "turn"),
    sa.Index("jobs_owner_turn", "owner", "status", "turn"),
    sa.Index("jobs_owner", "owner", "id"),
    sa.Index("jobs_finished", "finished_at"),
)

parts = sa.Table(
    "parts",
    _metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("first", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary),
    sa.Column("blob", sa.String(200)),
)

events = sa.Table(
    "events",
    _metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("event", sa.String(40), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

keys = sa.Table(
    "idempotency_keys",
    _metadata,
    sa.Column("owner", sa.String(80), primary_key=True),
    sa.Column("route", sa.String(120), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

about = sa.Table("about", _metadata, sa.Column("schema_version", sa.Integer, nullable=False))

_turns = ClaimOrder(_metadata)

_DROPPABLE = jobs.c.status.in_(TERMINAL) & (jobs.c.kind != TRAINING) & sa.not_(jobs.c.expired)

_UNBLOCKED = {"not_before": None, "blocked_since": None, "blocked_reason": None, "blocked_bytes": None}
_LONGEST_DELAY_S = 30.0
"""Longest time between two attempts to store a result."""

_INFERENCE = jobs.c.kind.not_in((TRAINING, *AUXILIARY_KINDS))
"""What an inference worker may take; the rest is for training workers."""


_STATUSES = ("queued", "running")


def _waiting() -> sa.ColumnElement[bool]:
    """Jobs that nobody holds and that may be claimed now."""
    # the status is named by itself, so that an index on it is used
    free = jobs.c.status.in_(_STATUSES) & sa.or_(jobs.c.status == "queued", jobs.c.lease_owner.is_(None))
    return free & sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= time.time())


def _claimable() -> sa.ColumnElement[bool]:
    """Those of them that an inference worker may take."""
    return _waiting() & _INFERENCE


def _queue_of(kind: str) -> str:
    """The queue in which owners take turns for jobs of a kind."""
    if kind == TRAINING:
        return claim_order.TRAINING
    return claim_order.AUXILIARY if kind in AUXILIARY_KINDS else claim_order.INFERENCE


Job = dict[str, Any]
"""A row of `jobs` by column name."""


@dataclass(frozen=True)
class Done:
    """What a worker has to say of a job it holds after one slice.

    `part` is the packed fields of rows [first, first + rows), or None while the slice is unfinished; `blob` where they
    were too large for the ledger. `state` and `state_done` carry an unfinished slice on. `problem` ends the job.
    """

    job_id: str
    token: int
    first: int = 0
    rows: int = 0
    part: bytes | None = None
    blob: str | None = None
    state: bytes | None = None
    state_done: float = 0.0
    problem: dict[str, Any] | None = None


@dataclass(frozen=True)
class Key:
    """An idempotency key: of which route, of what request, kept how long."""

    route: str
    key: str
    fingerprint: str
    keep_s: float


@dataclass(frozen=True)
class Added:
    """What became of a job that was to be added: `job_id` is its own, or that of the job before it.

    `first` is the fingerprint of the request that was first under the key; `conflict` the status of the job that
    stands in its way.
    """

    job_id: str
    first: str = ""
    conflict: str = ""


def new_id() -> str:
    """An id that sorts by time: 12 hex digits of milliseconds, then randomness."""
    return f"job_{int(time.time() * 1000):012x}{uuid4().hex[:16]}"


class JobStore:
    """The jobs, their parts, events and idempotency keys in one database."""

    def __init__(self, url: str) -> None:
        """Open the database, making its tables where it is new. Raises RuntimeError for another schema version."""
        address = sa.make_url(url)
        sqlite = address.get_backend_name() == "sqlite"
        if sqlite and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"connect_args": {"timeout": 15, "check_same_thread": False}} if sqlite else {}
        self.engine = sa.create_engine(url, pool_pre_ping=not sqlite, **options)
        if sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
        with self._writing() as connection:
            if schema_upgrade.upgrade(connection, _metadata):
                self._register_owners(connection)
            version = connection.scalar(sa.select(about.c.schema_version))
            if version is None:
                connection.execute(about.insert().values(schema_version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise RuntimeError(f"the ledger has schema {version}, this code {SCHEMA_VERSION}")

    @staticmethod
    def _register_owners(connection: Connection) -> None:
        """Give the owners of jobs that wait in a database of an earlier release their turns."""
        query = sa.select(jobs.c.kind, jobs.c.owner).where(jobs.c.status.not_in(TERMINAL)).distinct()
        for kind, owner in connection.execute(query).all():
            _turns.register(connection, _queue_of(kind), [owner])

    def _writing(self) -> AbstractContextManager[Connection]:
        return transaction(self.engine)

    # --- what an API process does ---

    def add(self, rows: Sequence[Job]) -> None:
        """Insert jobs as given, all in one transaction, each with its first event."""
        with self._writing() as connection:
            self._insert(connection, rows)

    def _insert(self, connection: Connection, rows: Sequence[Job]) -> None:
        for queue, owner in {(_queue_of(row["kind"]), row.get("owner", "")) for row in rows}:
            _turns.register(connection, queue, [owner])
        for row in rows:
            connection.execute(jobs.insert().values(**row))
            _note(connection, row["id"], "status", {"status": row["status"]})

    def add_once(self, row: Job, route: str, key: str, fingerprint: str, keep_s: float) -> tuple[str, str]:
        """Insert a job under an idempotency key; answers (job id, fingerprint) of whoever was first under that key."""
        mine = (keys.c.owner == row["owner"]) & (keys.c.route == route) & (keys.c.key == key)
        with self._writing() as connection:
            connection.execute(keys.delete().where(keys.c.created_at < time.time() - keep_s))
            found = connection.execute(sa.select(keys.c.job_id, keys.c.fingerprint).where(mine)).first()
            if found is not None:
                return found.job_id, found.fingerprint
            self._insert(connection, [row])
            connection.execute(
                keys.insert().values(
                    owner=row["owner"],
                    route=route,
                    key=key,
                    fingerprint=fingerprint,
                    job_id=row["id"],
                    created_at=time.time(),
                )
            )
            return row["id"], fingerprint

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """One job, or None; with `owner` only if it is theirs."""
        query = sa.select(jobs).where(jobs.c.id == job_id)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self.engine.connect() as connection:
            found = connection.execute(query).mappings().first()
            return dict(found) if found else None

    def listing(self, owner: str | None, filters: dict[str, str], after: str | None, limit: int) -> list[Job]:
        """Jobs newest first, those after (older than) the id `after`, at most `limit` of them."""
        query = (
            sa.select(*(c for c in jobs.c if c.name not in {"items", "state"})).order_by(jobs.c.id.desc()).limit(limit)
        )
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if after:
            query = query.where(jobs.c.id < after)
        for name, value in filters.items():
            query = query.where(jobs.c[name] == value)
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def counts(self) -> dict[str, int]:
        """How many jobs stand in each state that is not terminal."""
        query = sa.select(jobs.c.status, sa.func.count()).where(jobs.c.status.in_(("queued", "running")))
        with self.engine.connect() as connection:
            return {status: int(count) for status, count in connection.execute(query.group_by(jobs.c.status))}

    def result(self, job_id: str) -> list[tuple[bytes | None, str | None]]:
        """Parts of a job in row order, each as (bytes, blob key) of which one is None."""
        query = sa.select(parts.c.data, parts.c.blob).where(parts.c.job_id == job_id).order_by(parts.c.first)
        with self.engine.connect() as connection:
            return [(row.data, row.blob) for row in connection.execute(query)]

    def events_after(self, job_id: str, seq: int) -> list[Job]:
        """Events of a job with a number above `seq`, in order."""
        query = sa.select(events).where(events.c.job_id == job_id, events.c.seq > seq).order_by(events.c.seq)
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def last_events(self, job_ids: Collection[str]) -> dict[str, int]:
        """The number of the last event of each of these jobs; one that is not there is left out."""
        ids = list(job_ids)
        last: dict[str, int] = {}
        with self.engine.connect() as connection:
            for begin in range(0, len(ids), _IDS_A_QUERY):
                query = sa.select(events.c.job_id, sa.func.max(events.c.seq)).group_by(events.c.job_id)
                some = query.where(events.c.job_id.in_(ids[begin : begin + _IDS_A_QUERY]))
                last.update((job_id, seq) for job_id, seq in connection.execute(some))
        return last

    def cancel(self, job_id: str) -> bool:
        """End a job that has not ended; answers whether this call did. A worker that holds it is fenced off."""
        open_ = (jobs.c.id == job_id) & jobs.c.status.not_in(TERMINAL)
        with self._writing() as connection:
            return _finish(connection, open_, job_id, "cancelled", None) == 1

    def insert_exclusive(self, row: Job, *, alone: bool, key: Key | None = None) -> Added:
        """Insert a job for the training worker; where it must be `alone` under its model's name, only if it is.

        Under an idempotency key, the job that was first under that key is answered instead.
        """
        with self._writing() as connection:
            if key is not None:
                connection.execute(keys.delete().where(keys.c.created_at < time.time() - key.keep_s))
                mine = (keys.c.owner == row["owner"]) & (keys.c.route == key.route) & (keys.c.key == key.key)
                found = connection.execute(sa.select(keys.c.job_id, keys.c.fingerprint).where(mine)).first()
                if found is not None:
                    return Added(found.job_id, first=found.fingerprint)
            if alone:
                open_ = (jobs.c.kind == row["kind"]) & (jobs.c.model == row["model"]) & jobs.c.status.not_in(TERMINAL)
                other = connection.execute(sa.select(jobs.c.id, jobs.c.status).where(open_)).first()
                if other is not None:
                    return Added(other.id, conflict=other.status)
            self._insert(connection, [row])
            if key is not None:
                named = {"owner": row["owner"], "route": key.route, "key": key.key, "fingerprint": key.fingerprint}
                connection.execute(keys.insert().values(**named, job_id=row["id"], created_at=time.time()))
            return Added(row["id"], first=key.fingerprint if key else "")

    def unfinished(self, kind: str) -> list[Job]:
        """Jobs of a kind that have not ended, paused ones among them."""
        query = sa.select(jobs).where(jobs.c.kind == kind, jobs.c.status.not_in(TERMINAL))
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def unfinished_of(self, model: str, version: str) -> list[str]:
        """Return the ids of jobs that have not ended and name this model; with a version, only those that run on it."""
        query = sa.select(jobs.c.id).where(jobs.c.status.in_(("queued", "running", "paused")), jobs.c.model == model)
        if version:
            query = query.where(jobs.c.version == version)
        with self.engine.connect() as connection:
            return list(connection.scalars(query.limit(20)))

    def pause(self, job_id: str) -> bool:
        """Let a training rest; answers whether this call did. Whoever runs it is fenced off, and stops it."""
        open_ = (jobs.c.id == job_id) & (jobs.c.kind == TRAINING) & jobs.c.status.in_(("queued", "running"))
        return self._turned(job_id, open_, "paused")

    def resume(self, job_id: str) -> bool:
        """Put a paused training back in line; answers whether this call did."""
        return self._turned(job_id, (jobs.c.id == job_id) & (jobs.c.status == "paused"), "queued")

    def _turned(self, job_id: str, where: sa.ColumnElement[bool], status: str) -> bool:
        change = {"status": status, "token": jobs.c.token + 1, "lease_owner": None, "lease_until": None}
        with self._writing() as connection:
            turned = connection.execute(jobs.update().where(where).values(**change, turn=time.time())).rowcount == 1
            if turned:
                _note(connection, job_id, "status", {"status": status})
            return turned

    def delete(self, job_id: str) -> None:
        """Forget an ended job; its blobs are the caller's to remove."""
        with self._writing() as connection:
            for table in (parts, events, keys):
                connection.execute(table.delete().where(table.c.job_id == job_id))
            connection.execute(jobs.delete().where(jobs.c.id == job_id))

    # --- what whoever holds a job does ---

    def claim(
        self, owner: str, lease_s: float, limit: int, room: Callable[[Job], int] = lambda _job: SMALL
    ) -> list[Job]:
        """Take the job whose turn it is, and with it small ones that can share its forward pass.

        At most `limit` jobs, and as many rows together as there is `room` for in a pass of the first job's kind.
        """
        now = time.time()
        claimable = _claimable()
        with self._writing() as connection:
            next_owner = _turns.next_owner(connection, claim_order.INFERENCE, jobs, claimable)
            if next_owner is None:
                return []
            first = _oldest(connection, next_owner, claimable)
            if first is None:
                return []
            taken = [first]
            if _small(taken[0]):
                like = (
                    sa.select(jobs)
                    .where(
                        claimable,
                        jobs.c.status == "queued",
                        jobs.c.id != first["id"],
                        jobs.c.model == first["model"],
                        jobs.c.version == first["version"],
                        jobs.c.method == first["method"],
                        jobs.c.options == first["options"],
                        jobs.c.rows <= SMALL,
                        jobs.c.next_row == 0,
                        jobs.c.state.is_(None),
                        sa.not_(jobs.c.alone),
                    )
                    .order_by(jobs.c.turn)
                    .limit(limit - 1)
                    .with_for_update(skip_locked=True)
                )
                left = room(taken[0]) - taken[0]["rows"]
                for row in connection.execute(like).mappings():
                    left -= row["rows"]
                    if left < 0:
                        break
                    taken.append(dict(row))
            held = []
            for job in taken:
                change = {
                    "status": "running",
                    "token": job["token"] + 1,
                    "lease_owner": owner,
                    "lease_until": now + lease_s,
                    "shared": len(taken) > 1,
                    "started_at": job["started_at"] or now,
                }
                same = (jobs.c.id == job["id"]) & (jobs.c.token == job["token"])
                if connection.execute(jobs.update().where(same, claimable).values(**change)).rowcount:
                    if job["status"] == "queued":
                        _note(connection, job["id"], "status", {"status": "running"})
                    held.append({**job, **change})
            _turns.served(connection, claim_order.INFERENCE, [job["owner"] for job in held])
            return held

    def take(self, owner: str, lease_s: float, kinds: Sequence[str], passed_over: Sequence[str] = ()) -> Job | None:
        """Take the job of these kinds whose turn it is, alone; None where none waits.

        Jobs of the owners `passed_over` stay where they are.
        """
        now = time.time()
        with self._writing() as connection:
            wanted, queue = _waiting() & jobs.c.kind.in_(kinds), _queue_of(kinds[0])
            if passed_over:
                wanted &= jobs.c.owner.not_in(passed_over)
            next_owner = _turns.next_owner(connection, queue, jobs, wanted)
            if next_owner is None:
                return None
            found = _oldest(connection, next_owner, wanted)
            if found is None:
                return None
            _turns.served(connection, queue, [next_owner])
            change = {
                "status": "running",
                "token": found["token"] + 1,
                "lease_owner": owner,
                "lease_until": now + lease_s,
                "started_at": found["started_at"] or now,
            }
            connection.execute(jobs.update().where(jobs.c.id == found["id"]).values(**change))
            if found["status"] == "queued":
                _note(connection, found["id"], "status", {"status": "running"})
            return {**found, **change}

    def holds(self, job_id: str, token: int) -> bool:
        """Whether a claim still holds: nobody took the job away, paused or ended it."""
        query = sa.select(jobs.c.id).where(_held(job_id, token))
        with self.engine.connect() as connection:
            return connection.scalar(query) is not None

    def tell(
        self,
        job_id: str,
        token: int,
        notes: Sequence[tuple[str, Any]],
        progress: float,
        *,
        further: bool = False,
        charged: bool = False,
    ) -> bool:
        """Write events of a held job and how far it is, 0 to 1; answers whether the claim still held.

        `further`: it has left behind what it may have failed at before, so its attempts count anew. `charged`: it has
        cost one more attempt.
        """
        change: dict[str, Any] = {"progress": round(progress, 4)} | ({"attempts": 0} if further else {})
        if charged:
            change["attempts"] = jobs.c.attempts + 1
        with self._writing() as connection:
            if not connection.execute(jobs.update().where(_held(job_id, token)).values(**change)).rowcount:
                return False
            for event, data in notes:
                _note(connection, job_id, event, data)
            return True

    def end(
        self,
        job_id: str,
        token: int,
        *,
        problem: dict[str, Any] | None = None,
        result: bytes | None = None,
        version: str | None = None,
    ) -> bool:
        """End a held job with its problem, or with its result; answers whether the claim still held."""
        with self._writing() as connection:
            if connection.scalar(sa.select(jobs.c.id).where(_held(job_id, token))) is None:
                return False
            if problem is not None:
                return _finish(connection, _held(job_id, token), job_id, "failed", problem) == 1
            connection.execute(parts.delete().where(parts.c.job_id == job_id))
            connection.execute(parts.insert().values(job_id=job_id, first=0, data=result))
            more = {"progress": 1.0} | ({"version": version} if version else {})
            return _finish(connection, _held(job_id, token), job_id, "succeeded", None, **more) == 1

    def requeue(self, job_id: str, token: int, reason: str) -> None:
        """Return a held job for others to take at once."""
        back = {"status": "queued", "token": token + 1, "lease_owner": None, "lease_until": None}
        with self._writing() as connection:
            if connection.execute(jobs.update().where(_held(job_id, token)).values(**back)).rowcount:
                _note(connection, job_id, "status", {"status": "queued", "reason": reason})

    def defer(self, job_id: str, token: int, problem: Mapping[str, Any], give_up_s: float, size_bytes: int = 0) -> bool:
        """Put a held job back because its result cannot be stored; return whether the claim still held.

        It may be claimed again after a delay that grows with the wait, up to half a minute, and no attempt is charged.
        A job that has waited for `give_up_s` seconds ends with `problem`. `size_bytes` is what could not be stored.
        """
        now = time.time()
        held = _held(job_id, token)
        with self._writing() as connection:
            query = sa.select(jobs.c.blocked_since, jobs.c.blocked_reason).where(held)
            job = connection.execute(query).first()
            if job is None:
                return False
            since = job.blocked_since or now
            if now - since >= give_up_s:
                _finish(connection, held, job_id, "failed", dict(problem))
                return True
            change = {
                "status": "queued",
                "token": token + 1,
                "lease_owner": None,
                "lease_until": None,
                "not_before": now + min(_LONGEST_DELAY_S, max(1.0, now - since), max(0.0, since + give_up_s - now)),
                "blocked_since": since,
                "blocked_reason": problem["detail"],
                "blocked_bytes": size_bytes,
            }
            connection.execute(jobs.update().where(held).values(**change))
            if job.blocked_reason != problem["detail"]:  # said once: a wait of an hour is no hundred events
                _note(connection, job_id, "status", {"status": "queued", "reason": problem["detail"]})
            return True

    def renew(self, owner: str, lease_s: float) -> None:
        """Prolong every lease that `owner` holds."""
        mine = (jobs.c.lease_owner == owner) & (jobs.c.status == "running")
        with self._writing() as connection:
            connection.execute(jobs.update().where(mine).values(lease_until=time.time() + lease_s))

    def progress(self, owner: str, reached: Mapping[str, float]) -> None:
        """Note how far jobs that `owner` holds have got, by id, 0 to 1."""
        with self._writing() as connection:
            for job_id, fraction in reached.items():
                held = (jobs.c.id == job_id) & (jobs.c.lease_owner == owner) & (jobs.c.progress < fraction)
                if connection.execute(jobs.update().where(held).values(progress=round(fraction, 4))).rowcount:
                    _note(connection, job_id, "progress", {"progress": round(fraction, 4)})

    def release(self, owner: str) -> None:
        """Put back whatever `owner` still holds, for others to take at once."""
        self._release(jobs.c.lease_owner == owner, "its holder stopped")

    def release_all(self, reason: str) -> None:
        """Put back every job that somebody holds: the database was copied from elsewhere."""
        self._release(jobs.c.lease_owner.is_not(None), reason)

    def _release(self, whose: sa.ColumnElement[bool], reason: str) -> None:
        held = whose & (jobs.c.status == "running")
        back = {"status": "queued", "token": jobs.c.token + 1, "lease_owner": None, "lease_until": None}
        with self._writing() as connection:
            ids = list(connection.scalars(sa.select(jobs.c.id).where(held)))
            connection.execute(jobs.update().where(held).values(**back))
            for job_id in ids:
                _note(connection, job_id, "status", {"status": "queued", "reason": reason})

    def settle(self, reports: Sequence[Done]) -> list[str]:
        """Write what became of held jobs, in one transaction; answers the ids whose claim still held."""
        counted = []
        with self._writing() as connection:
            for done in reports:
                held = (jobs.c.id == done.job_id) & (jobs.c.token == done.token) & (jobs.c.status == "running")
                job = connection.execute(sa.select(jobs.c.rows, jobs.c.next_row).where(held)).first()
                if job is None:
                    continue
                counted.append(done.job_id)
                if done.problem is not None:
                    _finish(connection, held, done.job_id, "failed", done.problem)
                    continue
                next_row = job.next_row
                if done.state is None:
                    connection.execute(
                        parts.insert().values(job_id=done.job_id, first=done.first, data=done.part, blob=done.blob)
                    )
                    next_row = done.first + done.rows
                if next_row >= job.rows:
                    _finish(connection, held, done.job_id, "succeeded", None, next_row=next_row, progress=1.0)
                    continue
                progress = round(min((next_row + done.state_done * done.rows) / job.rows, 1.0), 4)
                connection.execute(
                    jobs.update()
                    .where(held)
                    .values(
                        next_row=next_row,
                        state=done.state,
                        progress=progress,
                        lease_owner=None,
                        lease_until=None,
                        attempts=0,
                        turn=time.time(),
                        **_UNBLOCKED,
                    )
                )
                _note(connection, done.job_id, "progress", {"progress": progress})
        return counted

    # --- what keeps promises when somebody dies ---

    def touch_lapsed(self) -> list[tuple[str, int]]:
        """Write to the jobs whose lease ran out, changing nothing; return their ids and tokens.

        Where this raises, nobody could have renewed a lease either. Where none has lapsed, nothing is written.
        """
        lapsed = _lapsed()
        with self.engine.connect() as connection:
            found = [
                (row.id, row.token) for row in connection.execute(sa.select(jobs.c.id, jobs.c.token).where(lapsed))
            ]
        if found:
            with self._writing() as connection:
                connection.execute(jobs.update().where(lapsed).values(lease_until=jobs.c.lease_until))
        return found

    def reap(self, max_attempts: int, only: Sequence[str] | None = None) -> list[str]:
        """Give back jobs whose lease ran out, or those of them that are named; answers their ids.

        A job that ran among others is not charged: it runs alone from then on. One that took its holder down
        `max_attempts` times alone is failed with the reason.
        """
        now = time.time()
        lapsed = _lapsed() if only is None else _lapsed() & jobs.c.id.in_(only)
        with self._writing() as connection:
            found = connection.execute(sa.select(jobs).where(lapsed)).mappings().all()
            for job in found:
                ran = not job["lease_owner"].startswith(API_OWNER_PREFIX)
                attempts = job["attempts"] + (ran and not job["shared"])
                here = jobs.c.id == job["id"]
                if attempts >= max_attempts:
                    problem = {
                        "type": "about:blank",
                        "title": "Worker lost",
                        "status": 500,
                        "detail": f"the process that ran this job died or fell silent {attempts} times",
                    }
                    _finish(connection, here, job["id"], "failed", problem, attempts=attempts, token=job["token"] + 1)
                    continue
                connection.execute(
                    jobs.update()
                    .where(here)
                    .values(
                        status="queued",
                        token=job["token"] + 1,
                        lease_owner=None,
                        lease_until=None,
                        alone=job["alone"] or ran,
                        attempts=attempts,
                        # behind the others: a suspect must not hold them up, nor take one blow after another
                        turn=now,
                    )
                )
                _note(connection, job["id"], "status", {"status": "queued", "reason": "its worker died or fell silent"})
            return [job["id"] for job in found]

    def claimable(self, older_than_s: float) -> int:
        """How many jobs have been waiting for a worker for longer than that."""
        old = jobs.c.turn < time.time() - older_than_s
        query = sa.select(sa.func.count()).select_from(jobs).where(_claimable(), old)
        with self.engine.connect() as connection:
            return int(connection.scalar(query) or 0)

    def expiring(self, older_than_s: float, limit: int) -> list[str]:
        """Ids of jobs that ended longer ago and whose results are kept still, at most `limit`.

        A training is kept until it is deleted.
        """
        old = jobs.c.finished_at < time.time() - older_than_s
        query = sa.select(jobs.c.id).where(_DROPPABLE, old).order_by(jobs.c.finished_at).limit(limit)
        with self.engine.connect() as connection:
            return list(connection.scalars(query))

    def oldest_results(self, count: int) -> list[str]:
        """Ids of the `count` jobs that ended first of those whose results are kept."""
        query = sa.select(jobs.c.id).where(_DROPPABLE).order_by(jobs.c.finished_at).limit(count)
        with self.engine.connect() as connection:
            return list(connection.scalars(query))

    def mark_expired(self, ids: Sequence[str]) -> None:
        """Drop the results of these jobs; their blobs must be gone already."""
        with self._writing() as connection:
            connection.execute(parts.delete().where(parts.c.job_id.in_(ids)))
            change = {"expired": True, "items": None, "items_blob": None}
            connection.execute(jobs.update().where(jobs.c.id.in_(ids)).values(**change))

    def forget(self, after_s: float) -> None:
        """Remove the rows of expired jobs that ended longer ago."""
        old = sa.select(jobs.c.id).where(jobs.c.expired, jobs.c.finished_at < time.time() - after_s).limit(1000)
        with self.engine.connect() as connection:
            gone = list(connection.scalars(old))
        if not gone:
            return
        with self._writing() as connection:
            for table, column in ((events, events.c.job_id), (jobs, jobs.c.id)):
                connection.execute(table.delete().where(column.in_(gone)))

    def states(self, ids: Sequence[str]) -> dict[str, tuple[str, bool]]:
        """Status, and whether the result has expired, of those of the jobs that are there."""
        found = {}
        with self.engine.connect() as connection:
            for first in range(0, len(ids), 500):
                some = jobs.c.id.in_(ids[first : first + 500])
                query = sa.select(jobs.c.id, jobs.c.status, jobs.c.expired).where(some)
                found.update({row.id: (row.status, bool(row.expired)) for row in connection.execute(query)})
        return found

    def has_open_job(self, model: str) -> bool:
        """Whether a job that may make a version of a model has not ended."""
        kinds = (TRAINING, "import", "publication")
        open_ = (jobs.c.model == model) & jobs.c.kind.in_(kinds) & jobs.c.status.not_in(TERMINAL)
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(jobs.c.id).where(open_).limit(1)) is not None


def _lapsed() -> sa.ColumnElement[bool]:
    """Jobs whose holder has not renewed its lease in time."""
    return (jobs.c.status == "running") & jobs.c.lease_owner.is_not(None) & (jobs.c.lease_until < time.time())


def _held(job_id: str, token: int) -> sa.ColumnElement[bool]:
    return (jobs.c.id == job_id) & (jobs.c.token == token) & (jobs.c.status == "running")


def _oldest(connection: Connection, owner: str, wanted: sa.ColumnElement[bool]) -> Job | None:
    """Lock and return the row of an owner's that has waited longest; each status by itself, in the index's order."""
    found: list[Mapping[Any, Any]] = []
    for status in _STATUSES:
        theirs = (jobs.c.owner == owner) & (jobs.c.status == status)
        query = sa.select(jobs).where(theirs, wanted).order_by(jobs.c.turn).limit(1)
        found += connection.execute(query.with_for_update(skip_locked=True)).mappings().all()
    return dict(min(found, key=lambda job: float(job["turn"]))) if found else None


def _small(job: Mapping[str, Any]) -> bool:
    return job["rows"] <= SMALL and job["next_row"] == 0 and job["state"] is None and not job["alone"]


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where the code says so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=15000"):
        connection.execute(f"PRAGMA {pragma}")


def _finish(
    connection: Connection,
    where: sa.ColumnElement[bool],
    job_id: str,
    status: str,
    problem: dict[str, Any] | None,
    **more: Any,
) -> int:
    values = {
        "status": status,
        "problem": orjson.dumps(problem).decode() if problem else None,
        "finished_at": time.time(),
        "lease_owner": None,
        "lease_until": None,
        "state": None,
        "items": None,
        **_UNBLOCKED,
        **more,
    }
    ended = connection.execute(jobs.update().where(where).values(**values)).rowcount
    if ended:
        said = {"status": status} | ({"problem": problem} if problem else {})
        _note(connection, job_id, "status", said)
    return ended


def _note(connection: Connection, job_id: str, event: str, data: dict[str, Any]) -> None:
    last = connection.scalar(sa.select(sa.func.max(events.c.seq)).where(events.c.job_id == job_id)) or 0
    connection.execute(
        events.insert().values(
            job_id=job_id, seq=last + 1, event=event, data=orjson.dumps(data).decode(), at=time.time()
        )
    )
