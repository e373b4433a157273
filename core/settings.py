"""Every setting of the service, in one frozen object read from the environment once at start."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Self
from urllib.parse import urlparse

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "REVERIE_"
CLIENT_NAMES = {"REVERIE_URL", "REVERIE_KEY"}
"""Not the service's: the command line `reverie` reads them, maybe in the same shell."""

RENAMED = {
    "REVERIE_LEDGER_URL": "REVERIE_DATABASE_URL",
    "REVERIE_LIFE_S": "REVERIE_HEARTBEAT_TIMEOUT_S",
    "REVERIE_LEASE_S": "REVERIE_JOB_LEASE_S",
    "REVERIE_WAIT_S": "REVERIE_SYNC_TIMEOUT_S",
    "REVERIE_MAX_WAIT_S": "REVERIE_MAX_SYNC_TIMEOUT_S",
    "REVERIE_DRAIN_S": "REVERIE_SHUTDOWN_GRACE_S",
    "REVERIE_SLICE_S": "REVERIE_TIME_SLICE_S",
    "REVERIE_DESK_S": "REVERIE_EVALUATION_TIMEOUT_S",
    "REVERIE_TRAINING_S": "REVERIE_TRAINING_TIMEOUT_S",
    "REVERIE_KEEP_RESULTS_S": "REVERIE_RESULT_TTL_S",
    "REVERIE_KEEP_KEYS_S": "REVERIE_IDEMPOTENCY_KEY_TTL_S",
    "REVERIE_RESERVE_BYTES": "REVERIE_MIN_FREE_DISK_BYTES",
    "REVERIE_TRAINING_FREE_BYTES": "REVERIE_TRAINING_MIN_FREE_DISK_BYTES",
}
"""Settings by their names in earlier releases → their names now; an old one stops the start."""


class Settings(BaseSettings):
    """What can be set with `REVERIE_…` variables, an empty one being none; every default works on a laptop.

    Raises `pydantic.ValidationError` for a value out of range and for a name that is no setting.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port the API listens on.")
    state: Path = Field(Path("var"), description="Folder of the ledger, blobs and the queue server's data.")
    checkpoints: Path = Field(Path("checkpoints"), description="Folder with NAME/VERSION/model.safetensors.")
    data: Path = Field(Path("data"), description="Folder of data known by name: MNIST, Fashion-MNIST.")
    extra_models: Path | None = Field(None, description="A folder of more model families, one Python file each.")
    queue_url: str = Field("redis://127.0.0.1:6390/0", description="Redis-compatible queue server.")
    queue_memory_bytes: int = Field(
        1 << 30, ge=16 << 20, description="Most memory of the queue server that `make serve` starts (`maxmemory`)."
    )
    database_url: str = Field("", description="SQLAlchemy URL of the job ledger; empty: SQLite in the state folder.")
    blobs_url: str = Field("", description="fsspec URL of the blob store; empty: a folder in the state folder.")
    api_keys: Path | None = Field(
        None, description="File with `name:sha256-of-key[:roles]` lines; without it every call is allowed."
    )
    allow_anonymous: bool = Field(
        default=False, description="Listen on an address other than loopback without API keys: everybody may call."
    )
    allowed_hosts: str = Field(
        "",
        description="Hosts that requests may name, separated by commas, `*.` for subdomains; empty: the loopback names "
        "on a loopback address, else any if keys are used.",
    )
    allowed_origins: str = Field(
        "", description="Origins of web pages that may call besides the service's own, separated by commas."
    )
    trusted_proxies: str = Field(
        "", description="Addresses and networks of proxies whose X-Forwarded-For is believed, separated by commas."
    )
    wrong_keys_per_minute: int = Field(
        10, ge=1, description="Wrong API keys that one address may send in a minute before it gets 429."
    )
    key_requests_per_second: int = Field(
        1000, ge=0, description="Requests a second of one key's name in one API process; 0: any number."
    )
    key_waiting_requests: int = Field(
        1024, ge=0, description="Requests of one key's name that may wait in one API process; 0: any number."
    )
    key_waiting_rows: int = Field(
        262_144,
        ge=0,
        description="Rows that large requests of one key's name (without keys: of all) may have waiting in one API "
        "process; 0: any number.",
    )
    key_unfinished_jobs: int = Field(
        5000, ge=0, description="Unfinished jobs of one key's name before it gets 429; 0: any number."
    )
    key_trainings: int = Field(
        20, ge=0, description="Unfinished trainings of one key's name before it gets 429; 0: any number."
    )
    key_stored_bytes: int = Field(
        64 << 30,
        ge=0,
        description="Bytes of datasets, versions and results that one key's name may store; 0: any number.",
    )
    keep_versions: int = Field(
        0,
        ge=0,
        description="Versions made here that are kept for each model beside the one that serves, the newest; 0: all.",
    )

    device: str = Field("auto", description="Device of the worker: auto, cpu, cuda or cuda:N.")
    threads: int = Field(
        0, ge=0, le=256, description="CPU threads of a forward pass; 0: one, or all for a large model."
    )
    memory_budget_bytes: int = Field(4 << 30, ge=1 << 20, description="Weights the worker keeps resident.")
    time_slice_s: float = Field(
        0.04, gt=0, le=5, description="Longest piece of work that runs without letting others go first."
    )

    sync_timeout_s: float = Field(
        10.0, gt=0, le=300, description="How long a request without a preference waits before it is a job."
    )
    max_sync_timeout_s: float = Field(60.0, gt=0, le=300, description="Longest wait that `Prefer: wait=N` can ask for.")
    max_count: int = Field(65_536, ge=1, description="Rows one request may ask for.")
    max_images: int = Field(1024, ge=1, description="Images one request may upload.")
    max_body_bytes: int = Field(32 << 20, ge=1024, description="Largest request body of the image routes.")
    max_control_body_bytes: int = Field(
        64 << 10, ge=1024, description="Largest request body of routes that take neither images nor files."
    )
    max_inflight_body_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Request bodies that are held in memory at a time before it answers 503.",
    )
    max_inflight_response_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Large responses held in memory at a time; further ones go to temporary files.",
    )
    max_dataset_bytes: int = Field(8 << 30, ge=1024, description="Largest upload of a dataset.")
    max_unpacked_bytes: int = Field(16 << 30, ge=1024, description="Largest a dataset may be unpacked.")
    min_free_disk_bytes: int = Field(
        512 << 20, ge=0, description="Room on the disk that uploads of datasets leave alone."
    )
    conversion_timeout_s: float = Field(
        3600.0, gt=0, description="Longest time that an upload may take to become a dataset."
    )
    max_upscaled_pixels: int = Field(
        180_000_000, ge=1, description="Pixels of the largest answer of the upscaling route."
    )
    max_waiting: int = Field(2048, ge=1, description="Requests that may wait in one API process before it answers 503.")
    max_streams: int = Field(
        50, ge=1, description="Event streams that one key, or without keys one address, may have open in a process."
    )
    max_queued_jobs: int = Field(20_000, ge=1, description="Unfinished jobs in the ledger before it answers 503.")

    max_connections: int = Field(
        4096, ge=8, description="Open connections of one API process; beyond, idle ones are closed, or it answers 503."
    )
    max_header_bytes: int = Field(64 << 10, ge=4096, description="Largest head of a request: its line and headers.")
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Time for the head of a request, from the connection or its first byte.",
    )
    idle_timeout_s: float = Field(15.0, gt=0, le=3600, description="How long a connection is kept between requests.")
    body_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="How long a request body may stand still or come slower than the minimal rate."
    )
    body_total_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Time for a whole request body, except uploads that stream to the disk.",
    )
    write_timeout_s: float = Field(30.0, gt=0, le=3600, description="The same for a client that reads its response.")
    min_transfer_rate: float = Field(
        500.0, ge=0.001, description="Slowest rate of bodies and responses, in bytes per second, over the time-out."
    )

    heartbeat_timeout_s: float = Field(
        1.5, gt=0.2, le=60, description="Silence after which a worker counts as dead to a waiting request."
    )
    job_lease_s: float = Field(
        3.0, gt=0.5, le=600, description="How long a claim on a job holds without being renewed."
    )
    stall_s: float = Field(
        120.0,
        gt=0.5,
        description="A worker whose work does not advance for so long is ended, and its rows are charged.",
    )
    max_attempts: int = Field(3, ge=1, le=10, description="Times a row may take its worker down before it is given up.")
    result_ttl_s: float = Field(86_400.0, gt=0, description="How long a finished job and its result are kept.")
    idempotency_key_ttl_s: float = Field(86_400.0, gt=0, description="How long an Idempotency-Key is remembered.")
    disk_quota_bytes: int = Field(
        20 << 30, ge=1 << 20, description="Most the blob store may hold; oldest results go first."
    )
    storage_wait_s: float = Field(
        3600.0, ge=0, description="How long a job whose result cannot be stored waits for room before it ends with 507."
    )
    sweep_s: float = Field(
        15.0, gt=0, le=3600, description="How often files that belong to nothing are looked for; twice found, they go."
    )
    shutdown_grace_s: float = Field(10.0, ge=0, le=600, description="How long a stopping API finishes what it has.")

    training_queue_url: str = Field(
        "", description="Where training workers are woken; empty: the queue server, one database further."
    )
    training_device: str = Field("auto", description="Device of trainings: auto, cpu, cuda or cuda:N.")
    training_threads: int = Field(1, ge=1, le=256, description="CPU threads of a training.")
    training_nice: int = Field(10, ge=0, le=19, description="How far a training steps back for what serves requests.")
    training_timeout_s: float = Field(604_800.0, gt=0, description="Longest time a training may run.")
    training_memory_bytes: int = Field(
        8 << 30, ge=1 << 28, description="Most memory a training, a dry run, an import or a publication may hold."
    )
    training_disk_bytes: int = Field(8 << 30, ge=1 << 20, description="Most disk space that a training's run may take.")
    training_min_free_disk_bytes: int = Field(
        256 << 20, ge=0, description="Disk space that a training must leave free."
    )
    evaluation_timeout_s: float = Field(
        600.0, gt=1, description="Longest time that a model may take to be measured or checked."
    )
    estimate_s: float = Field(120.0, gt=1, description="Longest time that a dry run of a training may take.")
    desk_workers: int = Field(
        4, ge=1, le=64, description="Dry runs, imports and publications that one training worker does at a time."
    )
    training_stall_s: float = Field(
        1800.0,
        gt=1,
        description="Longest time that a training may write no progress before its process is ended and tried again.",
    )
    max_version_bytes: int = Field(4 << 30, ge=1024, description="Largest file of a version that can be imported.")

    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Least severe log line written.")

    @model_validator(mode="after")
    def _known_names_only(self) -> Self:
        """Refuse a `REVERIE_…` variable that is no setting: a misspelt one would silently do nothing."""
        renamed = sorted(name for name in os.environ if name in RENAMED)
        if renamed:
            changes = ", ".join(f"{name} is {RENAMED[name]} now" for name in renamed)
            raise ValueError(f"settings were renamed: {changes}")
        known = CLIENT_NAMES | {PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise ValueError(f"no such setting: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if self.job_lease_s < 2 * HEARTBEAT_S or self.heartbeat_timeout_s < 2 * HEARTBEAT_S:
            raise ValueError(
                f"heartbeat_timeout_s and job_lease_s must be at least {2 * HEARTBEAT_S} s, twice the heartbeat"
            )
        return self

    @property
    def database(self) -> str:
        """URL of the ledger in force."""
        return self.database_url or f"sqlite:///{self.state.resolve() / 'ledger.sqlite3'}"

    @property
    def training_queue(self) -> str:
        """URL of the training workers' database in force."""
        if self.training_queue_url:
            return self.training_queue_url
        address = urlparse(self.queue_url)
        return address._replace(path=f"/{int(address.path.strip('/') or 0) + 1}").geturl()

    @property
    def blobs(self) -> str:
        """URL of the blob store in force."""
        return self.blobs_url or f"file://{self.state.resolve() / 'blobs'}"


HEARTBEAT_S = 0.4


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
