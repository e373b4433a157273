"""Read the service's settings from `REVERIE_…` environment variables; name paths of its files."""

import ipaddress
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource, SettingsConfigDict

PREFIX = "REVERIE_"
SECRETS_DIR = f"{PREFIX}SECRETS_DIR"
# Variables of the Python client, which the service ignores.
CLIENT_NAMES = {"REVERIE_URL", "REVERIE_KEY"}

# Names of earlier releases → current names. An old name stops the start.
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
    "REVERIE_DESK_WORKERS": "REVERIE_AUXILIARY_WORKERS",
}


def check_networks(text: str) -> str:
    """Return a comma-separated list of CIDR blocks unchanged.

    Raises ValueError if one of them is not valid.
    """
    for part in filter(None, map(str.strip, text.split(","))):
        ipaddress.ip_network(part)
    return text


class SecretFiles(SecretsSettingsSource):
    """Settings from files; an empty file counts as not set."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the content of a setting's file or None, its key, and whether it is JSON."""
        value, key, is_json = super().get_field_value(field, field_name)
        return value or None, key, is_json


class Settings(BaseSettings):
    """All settings of the service. Every default works on a laptop.

    An empty environment variable counts as not set. Raises pydantic.ValidationError for a value out
    of range and for an unknown name.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: int = Field(8000, ge=1, le=65535)
    """Port that the API listens on."""
    state: Path = Path("var")
    """Folder of the job database, the blobs and the queue server's data."""
    checkpoints: Path = Path("checkpoints")
    """Folder with NAME/VERSION/model.safetensors."""
    data: Path = Path("data")
    """Folder of the datasets known by name: MNIST, Fashion-MNIST."""
    extra_models: Path | None = None
    """A folder with more model families, one Python file each."""
    queue_url: str = "redis://127.0.0.1:6390/0"
    """URL of the Redis-compatible queue server: `redis://`, `rediss://` (TLS), `unix://` or
    `sentinel://HOST:PORT,HOST:PORT/DB?master_name=NAME`.
    """
    remote_control: bool = False
    """Inference workers respond to `celery inspect` and `celery control`, as Flower needs."""
    queue_memory_bytes: int = Field(1 << 30, ge=16 << 20)
    """Memory limit (`maxmemory`) of the queue server that `make serve` starts."""
    database_url: str = ""
    """URL of the job database, such as `postgresql://USER:PASSWORD@HOST/DATABASE`; empty: SQLite in
    the state folder.
    """
    blobs_url: str = ""
    """URL of the blob store, `s3://BUCKET/PREFIX` or `file:///FOLDER`; empty: a folder in the state
    folder.
    """
    presigned_url_s: float = Field(0.0, ge=0, le=604_800)
    """Lifetime of the links by which clients read large results from the object store; 0: no links."""
    api_keys: Path | None = None
    """File of API keys, one `name:sha256[:roles[:attributes]]` per line; without it every request
    is allowed.
    """
    public_openapi: bool = True
    """`/docs` and `/openapi.json` need no API key; if false, they need one as other routes do."""
    allow_anonymous: bool = False
    """Allow an address other than loopback without API keys: everybody may use the service."""
    allowed_hosts: str = ""
    """Host names that requests may use, separated by commas, with `*.` for subdomains; empty: the
    loopback names on a loopback address, otherwise any if API keys are used.
    """
    allowed_origins: str = ""
    """Origins of other web pages that may use the service, separated by commas."""
    trusted_proxies: str = ""
    """Addresses and networks of proxies whose X-Forwarded-For is trusted, separated by commas."""
    wrong_keys_per_minute: int = Field(10, ge=1)
    """Wrong API keys per minute and address before the status is 429."""
    key_requests_per_second: int = Field(1000, ge=0)
    """Requests per second, owner and API process; 0: no limit."""
    key_waiting_requests: int = Field(1024, ge=0)
    """Waiting synchronous requests per owner and API process; 0: no limit."""
    key_waiting_rows: int = Field(262_144, ge=0)
    """Waiting rows of large requests per owner (without keys: in total) and API process; 0: no
    limit.
    """
    key_unfinished_jobs: int = Field(5000, ge=0)
    """Unfinished jobs per owner before the status is 429; 0: no limit."""
    key_trainings: int = Field(20, ge=0)
    """Unfinished trainings per owner before the status is 429; 0: no limit."""
    key_stored_bytes: int = Field(64 << 30, ge=0)
    """Bytes of datasets, versions and results per owner; 0: no limit."""
    keep_versions: int = Field(0, ge=0)
    """Versions made here to keep per model, the newest ones and the active one; 0: all."""

    device: str = "auto"
    """Device of the inference worker: auto, cpu, cuda or cuda:N."""
    threads: int = Field(0, ge=0, le=256)
    """CPU threads of a forward pass; 0: one, or all cores for a large model."""
    memory_budget_bytes: int = Field(4 << 30, ge=1 << 20)
    """Memory for the weights that a worker keeps loaded."""
    models: str = ""
    """Models that an inference worker may load: names separated by commas, `*` for any text; empty:
    all.
    """
    pinned_models: str = ""
    """Models that a worker loads first, and whose active versions and candidates it never unloads:
    names separated by commas, `*` for any text.
    """
    time_slice_s: float = Field(0.04, gt=0, le=5)
    """Time slice: a worker yields to other long work after this many seconds."""

    sync_timeout_s: float = Field(10.0, gt=0, le=300)
    """Time that a request without `Prefer` waits before it becomes a job."""
    max_sync_timeout_s: float = Field(60.0, gt=0, le=300)
    """Maximum of `Prefer: wait=N`."""
    max_count: int = Field(65_536, ge=1)
    """Maximum of `count`: the rows of one request."""
    max_images: int = Field(1024, ge=1)
    """Maximum number of images in one request."""
    max_body_bytes: int = Field(32 << 20, ge=1024)
    """Maximum request body of the routes that take images."""
    max_control_body_bytes: int = Field(64 << 10, ge=1024)
    """Maximum request body of the routes that take neither images nor files."""
    max_inflight_body_bytes: int = Field(64 << 20, ge=1 << 20)
    """Memory for all request bodies together; beyond it the status is 503."""
    max_inflight_response_bytes: int = Field(64 << 20, ge=1 << 20)
    """Memory for all large responses that are being sent (else 503), and for all write buffers
    (else closed).
    """
    max_dataset_bytes: int = Field(8 << 30, ge=1024)
    """Maximum size of a dataset upload."""
    max_unpacked_bytes: int = Field(16 << 30, ge=1024)
    """Maximum size of a dataset after unpacking."""
    min_free_disk_bytes: int = Field(512 << 20, ge=0)
    """Disk space that dataset uploads leave free."""
    conversion_timeout_s: float = Field(3600.0, gt=0)
    """Time limit for the conversion of an upload to a dataset."""
    max_upscaled_pixels: int = Field(180_000_000, ge=1)
    """Maximum number of pixels of an upscaled picture."""
    max_waiting: int = Field(2048, ge=1)
    """Waiting synchronous requests per API process; beyond it the status is 503."""
    allowed_networks: Annotated[str, AfterValidator(check_networks)] = ""
    """Networks (CIDR), separated by commas, that webhooks and URLs of inputs may reach beside
    public addresses.
    """
    webhook_retry_s: float = Field(5.0, gt=0, le=3600)
    """Delay before the first retry of a webhook; later delays grow up to three hours."""
    webhook_retry_period_s: float = Field(86_400.0, gt=0)
    """Time for which a webhook is retried before it is given up."""
    fetch_timeout_s: float = Field(600.0, gt=0)
    """Time limit for fetching the inputs of a request by URL."""
    max_streams: int = Field(50, ge=1)
    """Open event streams per API key (without keys: per address) and API process."""
    max_queued_jobs: int = Field(20_000, ge=1)
    """Unfinished jobs in the job store; beyond it the status is 503."""

    max_connections: int = Field(4096, ge=8)
    """Open connections per API process; beyond it idle ones are closed, or the status is 503."""
    max_header_bytes: int = Field(64 << 10, ge=4096)
    """Maximum size of the request line and headers."""
    header_timeout_s: float = Field(10.0, gt=0, le=600)
    """Time limit for the request line and headers, from the connection or the first byte."""
    idle_timeout_s: float = Field(15.0, gt=0, le=3600)
    """Time that an idle connection is kept open between requests."""
    body_timeout_s: float = Field(30.0, gt=0, le=3600)
    """Time that a request body may stall or be slower than the minimum rate."""
    body_total_timeout_s: float = Field(300.0, gt=0)
    """Time limit for a whole request body, except uploads that are streamed to disk."""
    write_timeout_s: float = Field(30.0, gt=0, le=3600)
    """Time that a client may stall or be slower than the minimum rate while it reads a response."""
    min_transfer_rate: float = Field(500.0, ge=0.001)
    """Minimum rate of request bodies and responses, in bytes per second."""

    heartbeat_timeout_s: float = Field(1.5, gt=0.2, le=60)
    """A worker without a heartbeat for this long counts as dead."""
    device_wait_s: float = Field(10.0, ge=0, le=3600)
    """A request or job whose device kind has had no worker for this long starts again on another
    kind.
    """
    rollout_timeout_s: float = Field(60.0, gt=0, le=3600)
    """Workers that have not loaded a new version after this time are stopped (and started again by
    their supervisor), and the version becomes active on the others.
    """
    job_lease_s: float = Field(3.0, gt=0.5, le=600)
    """A claim on a job expires after this time unless it is renewed."""
    stall_s: float = Field(120.0, gt=0.5)
    """A worker whose work makes no progress for this long is ended; its rows count a failed
    attempt.
    """
    max_attempts: int = Field(3, ge=1, le=10)
    """A row that has crashed its worker this many times fails."""
    result_ttl_s: float = Field(86_400.0, gt=0)
    """Time that the result of a finished job is kept; its row is kept seven times as long."""
    idempotency_key_ttl_s: float = Field(86_400.0, gt=0)
    """Time that an Idempotency-Key is remembered."""
    disk_quota_bytes: int = Field(20 << 30, ge=1 << 20)
    """Maximum size of the blobs of jobs; the oldest results are deleted first."""
    storage_wait_s: float = Field(3600.0, ge=0)
    """A job whose result cannot be stored waits this long for disk space, then fails with 507."""
    sweep_s: float = Field(15.0, gt=0, le=3600)
    """Interval of the cleanup; an orphaned file is deleted when two sweeps have found it."""
    shutdown_delay_s: float = Field(0.0, ge=0, le=600)
    """Time after SIGTERM for which an API process still accepts requests while `/readyz` is 503, so
    that a load balancer stops using it first.
    """
    shutdown_grace_s: float = Field(10.0, ge=0, le=600)
    """Time that a stopping API has to finish its requests."""

    training_queue_url: str = ""
    """Redis database that wakes training workers; empty: the next database of the queue server."""
    training_device: str = "auto"
    """Device of trainings: auto, cpu, cuda or cuda:N."""
    training_threads: int = Field(1, ge=1, le=256)
    """CPU threads of a training."""
    training_nice: int = Field(10, ge=0, le=19)
    """`nice` level of training processes."""
    training_timeout_s: float = Field(604_800.0, gt=0)
    """Time limit of a training."""
    training_memory_bytes: int = Field(8 << 30, ge=1 << 28)
    """Memory limit of a training, a dry run, an import or a publication."""
    training_disk_bytes: int = Field(8 << 30, ge=1 << 20)
    """Disk space limit of a training's run."""
    training_min_free_disk_bytes: int = Field(256 << 20, ge=0)
    """Disk space that a training must leave free."""
    evaluation_timeout_s: float = Field(600.0, gt=1)
    """Time limit for measuring or checking a model."""
    estimate_s: float = Field(120.0, gt=1)
    """Time limit of a dry run of a training."""
    auxiliary_workers: int = Field(4, ge=1, le=64)
    """Auxiliary jobs (dry runs, imports and so on) that one training worker runs at the same
    time.
    """
    training_stall_s: float = Field(1800.0, gt=1)
    """A training that writes no progress for this long is killed and retried."""
    cache_bytes: int = Field(20 << 30, ge=1 << 20)
    """Maximum size of the copies of versions and datasets that each host keeps of an object store."""
    max_version_bytes: int = Field(4 << 30, ge=1024)
    """Maximum size of a version file to import."""

    secrets_dir: Path | None = None
    """Folder of files that hold settings, such as a file `REVERIE_DATABASE_URL`; a variable
    overrides its file.
    """
    heartbeat_file: Path | None = None
    """File to which a worker writes its state after each heartbeat, for health checks of
    containers.
    """
    tracing: bool = False
    """Record OpenTelemetry traces; needs the extra `otel`, and `OTEL_…` variables say where they
    are sent.
    """
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")
    """Minimum level of log lines: debug, info, warning or error."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override] # the other arguments are not used
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        **_others: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from: arguments, then variables, then the files of
        `secrets_dir`.
        """
        folder = Path(os.environ.get(SECRETS_DIR, ""))
        files = [SecretFiles(settings_cls, secrets_dir=folder)] if folder.name and folder.is_dir() else []
        return init_settings, env_settings, *files

    @model_validator(mode="after")
    def _known_names_only(self) -> Self:
        """Raise ValueError for a `REVERIE_…` variable or secret file with an unknown or old name.

        A misspelt name would have no effect. Also raises ValueError if `heartbeat_timeout_s` or
        `job_lease_s` is shorter than two heartbeats.
        """
        names = set(os.environ)
        if self.secrets_dir:
            if not self.secrets_dir.is_dir():
                raise ValueError(f"{SECRETS_DIR}: {self.secrets_dir} is no folder")
            names |= {file.name.upper() for file in self.secrets_dir.iterdir()}
        renamed = sorted(name for name in names if name in RENAMED)
        if renamed:
            changes = ", ".join(f"{name} is {RENAMED[name]} now" for name in renamed)
            raise ValueError(f"settings were renamed: {changes}")
        known = CLIENT_NAMES | {PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(name for name in names if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise ValueError(f"no such setting: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if self.job_lease_s < 2 * HEARTBEAT_S or self.heartbeat_timeout_s < 2 * HEARTBEAT_S:
            detail = f"heartbeat_timeout_s and job_lease_s must be at least {2 * HEARTBEAT_S} s, twice the heartbeat"
            raise ValueError(detail)
        return self

    @property
    def database(self) -> str:
        """The URL of the job database."""
        return self.database_url or f"sqlite:///{self.state.resolve() / 'jobs.sqlite3'}"

    @property
    def blobs(self) -> str:
        """The URL of the blob store."""
        return self.blobs_url or f"file://{self.state.resolve() / 'blobs'}"


HEARTBEAT_S = 0.4  # interval of heartbeats, in seconds


@dataclass(frozen=True)
class StatePaths:
    """Paths in the state folder that more than one program of the service uses."""

    state: Path

    def run(self, job_id: str) -> Path:
        """Return the run folder of the training with this id."""
        return self.state / "runs" / job_id

    def previews(self, job_id: str) -> Path:
        """Return the folder of the previews by epoch of the training with this id."""
        return self.run(job_id) / "previews"

    def auxiliary_job(self, job_id: str) -> Path:
        """Return the folder of the auxiliary job with this id; it is removed when the job ends."""
        return self.state / "scratch" / job_id

    @property
    def unfinished(self) -> Path:
        """The folder of temporary files in which large responses are made."""
        return self.state / "unfinished"

    @property
    def datasets(self) -> Path:
        """The folder of datasets."""
        return self.state / "datasets"

    @property
    def checkpoints(self) -> Path:
        """The folder of model versions made by this service."""
        return self.state / "checkpoints"

    @property
    def webhook_secret(self) -> Path:
        """The file with the secret that signs webhooks of jobs without an owner (no API keys)."""
        return self.state / "webhook-secret"

    @property
    def families(self) -> Path:
        """The file with descriptions of extra families, which a training worker writes."""
        return self.state / "families.json"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once from the environment.

    Raises pydantic.ValidationError if a value is not valid or a name is unknown.
    """
    return Settings()
