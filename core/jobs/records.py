"""Define the records of the job store: jobs, claims, events, results and their states."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

Problem = dict[str, Any]  # problem details (RFC 9457)

TRAINING = "training"
# Kinds of jobs that a training worker runs beside its training.
# Each takes some seconds in a child process.
AUXILIARY_KINDS = ("estimate", "import", "publication", "dataset")

# Kinds of jobs that publish versions of models.
PUBLISHING_KINDS = (TRAINING, "import", "publication")

UNFINISHED = ("queued", "running", "paused")
TERMINAL = ("succeeded", "failed", "cancelled")

# Prefix of the names under which API processes hold leases.
# They do not run the job, so their death is no attempt.
API_HOLDER_PREFIX = "api-"

HOST_CHARACTERS = 40  # of a host's name in the name of a worker, which holds leases: a column is 80 wide

SMALL_JOB_ROWS = 16  # jobs of at most this many rows share a forward pass with similar jobs


def new_id() -> str:
    """Return a job id that sorts by time: 12 hex digits of milliseconds, then 16 random digits."""
    return f"job_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


@dataclass(frozen=True)
class Claim:
    """A worker's claim on a job: the id of the job, and the fencing token of the claim.

    Each claim of a job has a higher token; writes with a token older than the job's have no effect.
    """

    job_id: str
    token: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job: a row of the table `jobs`. Times are Unix times in seconds."""

    id: str = field(default_factory=new_id)
    kind: str
    owner: str = ""  # name of the API key that made the job; empty without keys
    status: str = "queued"
    model: str
    version: str = ""
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    # What the client asked for, without pixels.
    request: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""
    seed: int = 0
    rows: int = 1
    # The uploaded images, packed; None if there are none or they are in the blob store.
    items: bytes | None = None
    items_blob: str | None = None
    rows_per_image: int = 1
    next_row: int = 0
    continuation: bytes | None = None  # packed state of an unfinished slice
    progress: float = 0.0  # from 0 to 1
    token: int = 0
    lease_holder: str | None = None
    lease_until: float | None = None
    co_batched: bool = False  # claimed together with other jobs
    isolated: bool = False  # must run alone, because the process of an earlier attempt died
    attempts: int = 0
    # When it last became claimable; the oldest is claimed first.
    queued_at: float = field(default_factory=time.time)
    problem: Problem | None = None  # of a failed job
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    finished_at: float | None = None
    expired: bool = False  # its result was removed
    # When a job whose result could not be stored may be claimed again.
    not_before: float | None = None
    blocked_since: float | None = None
    blocked_reason: str | None = None
    blocked_bytes: int | None = None
    traceparent: str | None = None  # of the span of the request that made the job
    deadline_at: float | None = None  # when the job ends as failed, unless it has ended before
    # `core.webhooks.records.Webhook` as a dictionary; None without a webhook.
    webhook: dict[str, Any] | None = None
    # URLs of images that must be fetched before a worker can run the job, keyed by field.
    input_urls: dict[str, Any] | None = None
    # The kind of device that computes all rows; None until the first claim if no worker was there.
    device_kind: str | None = None

    @property
    def claim(self) -> Claim:
        """The claim with this record's job id and token.

        It is valid only if the record was returned when the job was claimed.
        """
        return Claim(self.id, self.token)

    @property
    def ended(self) -> bool:
        """Whether the job succeeded, failed or was cancelled."""
        return self.status in TERMINAL


@dataclass(frozen=True)
class ClaimScope:
    """The inference jobs that a worker may claim, and the worker's device kind.

    A device kind names what a result depends on, to the last bit: device, processor, torch version,
    threads. `models` are the names of the models that the worker may load, None for all, and
    `lacking` the pairs (model, version) that it has found missing. If `loaded` is not None, the
    worker's memory is full: jobs of versions that are not in `loaded` are left to other workers for
    some time.
    """

    device_kind: str
    models: tuple[str, ...] | None = None
    lacking: tuple[tuple[str, str], ...] = ()
    loaded: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True)
class Event:
    """An event of a job. The store numbers the events of each job from 1, without gaps."""

    name: str
    data: dict[str, Any]
    seq: int = 0
    at: float = 0.0


@dataclass(frozen=True)
class ResultChunk:
    """The result of some rows of a job: its packed `data`, or `blob_key`, the key of its blob.

    Either `data` or `blob_key` is None.
    """

    data: bytes | None
    blob_key: str | None


@dataclass(frozen=True)
class JobState:
    """A job's status, and whether its result has expired, that is, was removed."""

    status: str
    expired: bool

    @property
    def needs_blobs(self) -> bool:
        """Whether the job's blobs are needed: it has not ended, or its result is still kept."""
        return self.status not in TERMINAL or (self.status == "succeeded" and not self.expired)


def import_key(job_id: str) -> str:
    """Return the key of the blob with the file that a job imports as a version."""
    return f"jobs/{job_id}/import"


@dataclass(frozen=True)
class SliceReport:
    """What a worker reports after it has run some rows of a claimed job in a batch.

    If these rows are finished, `data` or the blob `blob_key` has the results of rows [first_row,
    first_row + rows). Otherwise the report has a `continuation`, the packed state from which the
    work on these rows continues, and `continuation_progress`, the fraction of this work that is
    done. A `problem` ends the job as failed.
    """

    claim: Claim
    first_row: int = 0
    rows: int = 0
    data: bytes | None = None
    blob_key: str | None = None
    continuation: bytes | None = None
    continuation_progress: float = 0.0
    problem: Problem | None = None


@dataclass(frozen=True)
class IdempotencyKey:
    """The idempotency key `key` that a client sent with a request to `route`.

    `fingerprint` is a hash of the request's content; the key expires after `ttl_s` seconds.
    """

    route: str
    key: str
    fingerprint: str
    ttl_s: float


@dataclass(frozen=True)
class Insertion:
    """The outcome of inserting a job into the job store.

    `job_id` is the new job, or the existing job that prevented the insert. `fingerprint` is the
    hash of the first request with the same idempotency key, "" without a key. `conflict` is the
    status of the unfinished job that prevented the insert of a job which may not run beside it,
    otherwise "".
    """

    job_id: str
    fingerprint: str = ""
    conflict: str = ""
