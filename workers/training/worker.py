"""The training worker, `python -m workers.training`. It runs trainings one after another, each as a child process.

The ledger says what is owed; a list in a database of its own wakes the worker up. What a training has reached lies in
its run's folder, so whoever takes it up after a death goes on from the last checkpoint, to the same bits. Estimates,
checks of imported files and publications are short, and run beside the training on a thread of their own (the desk).
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import redis
import sqlalchemy.exc

from core.blobs import remove_tree, size_of
from core.broker.codec import pack, unpack
from core.broker.connection import COMPLETION_STREAM_LENGTH, JOB_UPDATES, WORKERS, connect, preview_key
from core.catalog.recipes import TRAINING_WAKEUP, TRAINING_WORKERS, StatePaths, better
from core.catalog.registry import Registry
from core.catalog.versions import FILE, Versions, awaited, loaded, refused
from core.datasets.store import Datasets
from core.jobs.lease_reaper import LeaseReaper
from core.jobs.store import AUXILIARY_KINDS, TERMINAL, TRAINING, Job, JobStore
from core.log import best_effort, set_up
from core.settings import HEARTBEAT_S, Settings
from core.startup import QueueGuard, check, errors_end_the_program, load_settings
from core.storage import INSUFFICIENT_STORAGE, NO_SPACE, lacks_space, reason_of, storage_problem

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
INTERRUPTED, UNSOUND, TOO_LARGE = 3, 4, 5
"""Exit codes of `python -m models`: stopped with a checkpoint, ended by its own loss, and beyond its memory limit."""

QUICK_DESK = ("import", "publication")
GPU_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files without which there is no GPU to look for, which takes a process of some seconds."""

LOOK_S = 0.25
SWEEP_S = 1.0
WEIGH_S = 1.0
"""How often a child is held to its limits; looking through all processes costs some milliseconds."""

STOP_S = 20.0
"""How long a child may take for its checkpoint before it is killed."""

LEAST_STEP = 0.002
"""Progress that is worth an event."""

LOAD_S = 60.0
"""How long the inference workers may take to load a new version before it serves anyhow."""

DESCRIBE_S = 300.0
"""How long a child may take to say which families and devices there are."""

PREVIEW_KEEP_S = 600
FRESH_S = 5.0


class WorkerStoppingError(Exception):
    """This worker is to stop; what it holds goes back."""


class ClaimLostError(Exception):
    """The claim on a job is gone: it was cancelled, paused or taken over."""


class TrainingFailedError(Exception):
    """A job cannot be done; what is said goes to the client."""

    def __init__(self, title: str, detail: str, status: int = 500) -> None:
        super().__init__(detail)
        self.title, self.status = title, status
        self.problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}

    def adding(self, more: str) -> "TrainingFailedError":
        """The same with more detail."""
        return TrainingFailedError(self.title, f"{self}; {more}", self.status)


@dataclass
class Watched:
    """What has been told of a run so far."""

    epochs: int = 0
    checkpoint: dict[str, Any] | None = None
    progress: float = 0.0
    reached: float = 0.0
    preview: int = 0
    weighed: float = 0.0
    stamp: tuple[int, ...] = ()
    advanced: float = 0.0


class TrainingWorker:
    """One training worker: a trainer and a desk, each a thread that takes jobs of its kinds from the ledger."""

    def __init__(self, chosen: Settings) -> None:
        """Open the ledger and the folders; nothing runs yet."""
        self.settings = chosen
        self.id = f"trainer-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.places = StatePaths(chosen.state.resolve())
        self.job_store = JobStore(chosen.database)
        self.reaper = LeaseReaper(self.job_store, chosen.job_lease_s, chosen.max_attempts)
        self.datasets = Datasets(self.places.datasets)
        self.versions = Versions(self.places.checkpoints)
        self.registry = Registry(chosen.checkpoints, self.places.checkpoints)
        self.front = connect(chosen)
        self.redis = redis.Redis.from_url(chosen.training_queue, socket_timeout=5, socket_connect_timeout=2)
        self.stopping = threading.Event()
        self.state = "ready"
        self.running: dict[str, str] = {}
        self.devices: int | None = None
        self._owners: dict[str, str] = {}
        self._claiming = threading.Lock()
        self._swept = 0.0

    def start(self) -> None:
        """Serve until told to stop."""
        threads = [
            threading.Thread(target=self._serve, args=((TRAINING,),), name="trainer"),
            threading.Thread(target=self._describe, name="describe"),
        ]
        # one of several does no dry runs: however many slow ones there are, an import does not wait for them
        desks = [AUXILIARY_KINDS] * max(1, self.settings.desk_workers - 1) + [QUICK_DESK] * (
            self.settings.desk_workers > 1
        )
        threads += [
            threading.Thread(target=self._serve, args=(kinds,), name=f"desk-{number}")
            for number, kinds in enumerate(desks)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            best_effort(self._keep)
            time.sleep(HEARTBEAT_S / 4 if self.stopping.is_set() else HEARTBEAT_S)
        best_effort(lambda: self.job_store.release(self.id))
        best_effort(lambda: self.redis.hdel(TRAINING_WORKERS, self.id))

    def stop(self) -> None:
        """Have children write their checkpoints, and end."""
        self.state = "draining"
        self.stopping.set()

    # --- sign of life ---

    def _keep(self) -> None:
        """Renew leases, tell that this worker lives, give back what dead ones held, let go of unused datasets."""
        if self.running:
            best_effort(lambda: self.job_store.renew(self.id, self.settings.job_lease_s))
        said = {
            "at": time.time(),
            "state": self.state,
            "host": platform.node(),
            "pid": os.getpid(),
            "running": list(self.running),
            "devices": self.devices,
        }
        best_effort(lambda: self.redis.hset(TRAINING_WORKERS, self.id, pack(said)))
        if time.monotonic() - self._swept >= SWEEP_S:
            self._swept = time.monotonic()
            for job_id in self.reaper.reap():
                log.warning("lease lapsed", extra={"job": job_id})
            self._release_datasets()

    def _release_datasets(self) -> None:
        for folder in self.places.datasets.glob("[!.]*/uses/job_*"):
            job = self.job_store.get(folder.name)
            if job is None or job["status"] in TERMINAL:
                self.datasets.release(folder.parent.parent.name, folder.name)

    def _describe(self) -> None:
        """Find out what this worker can train, and on how many devices."""
        best_effort(self._refresh_families)
        best_effort(self._count_devices)
        if self.devices is None and not self.stopping.is_set():
            self.devices = 1

    def _count_devices(self) -> None:
        """Set over how many devices a training may be spread: the GPUs, or the one device of the settings."""
        several = self.settings.training_device in {"auto", "cuda"} and any(Path(node).exists() for node in GPU_NODES)
        said = self._said("devices") if several else None
        self.devices = int(orjson.loads(said)["devices"]) if said else 1

    def _said(self, command: str) -> bytes | None:
        """What a command of `python -m models` without arguments prints; None where it fails, which is logged."""
        words = self._models(command)
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                words, cwd=ROOT, env=_environment(1), capture_output=True, check=False, timeout=DESCRIBE_S
            )
        except subprocess.TimeoutExpired:
            log.exception("child took too long", extra={"command": command})
            return None
        if done.returncode:
            log.error("child failed", extra={"command": command, "said": done.stderr.decode()[-2000:]})
            return None
        return done.stdout

    def _refresh_families(self) -> None:
        if self.settings.extra_models is None:
            return
        said = self._said("families")
        if said is None:
            return
        part = self.places.families.with_suffix(f".{os.getpid()}")
        try:
            part.write_bytes(said)
            part.replace(self.places.families)
        finally:
            part.unlink(missing_ok=True)

    # --- jobs ---

    def _serve(self, kinds: tuple[str, ...]) -> None:
        """Take jobs of these kinds, one after another, until this worker stops."""
        while not self.stopping.is_set():
            try:
                job = self._claim(kinds)
            except Exception:
                log.exception("the ledger cannot be asked")
                job = None
            if job is None:
                self._sleep()
                continue
            try:
                self._do(job)
            finally:
                del self.running[job["id"]], self._owners[job["id"]]
                best_effort(lambda: self._remove_scratch(job))  # noqa: B023 - called at once
                best_effort(lambda: self._news(job["id"]))  # noqa: B023 - called at once

    def _claim(self, kinds: tuple[str, ...]) -> Job | None:
        """Take a job, and note it among those that run before another thread looks whose turn it is."""
        with self._claiming:
            job = self.job_store.take(self.id, self.settings.job_lease_s, kinds, self._passed_over(kinds))
            if job is not None:
                self.running[job["id"]], self._owners[job["id"]] = job["kind"], job["owner"]
            return job

    def _passed_over(self, kinds: tuple[str, ...]) -> list[str]:
        """Owners whose short jobs have to wait: one of them must not take every place. Without keys all are one."""
        if TRAINING in kinds:
            return []
        held = Counter(self._owners.get(job, "") for job, kind in list(self.running.items()) if kind in AUXILIARY_KINDS)
        return [owner for owner, count in held.items() if owner and count >= max(1, self.settings.desk_workers - 2)]

    def _sleep(self) -> None:
        """Wait for a message, a second at most: it is a hint, and the ledger is asked anyway."""
        try:
            self.redis.blpop([TRAINING_WAKEUP], timeout=1)
        except (redis.RedisError, OSError):
            self.stopping.wait(1.0)

    def _news(self, job_id: str) -> None:
        self.front.xadd(JOB_UPDATES, {"ids": pack([job_id])}, maxlen=COMPLETION_STREAM_LENGTH, approximate=True)

    def _do(self, job: Job) -> None:
        work = {
            TRAINING: self._train,
            "estimate": self._estimate,
            "import": self._import,
            "publication": self._publication,
        }[job["kind"]]
        try:
            work(job)
        except ClaimLostError:
            log.info("taken away", extra={"job": job["id"]})
        except WorkerStoppingError:
            best_effort(lambda: self.job_store.requeue(job["id"], job["token"], "its worker stopped"))
        except TrainingFailedError as error:
            if error.status == INSUFFICIENT_STORAGE:
                self._defer(job, error.problem)
            else:
                self._fail(job, error)
        except sqlalchemy.exc.OperationalError as error:
            self._defer(job, storage_problem(error, "the job runs, but what it says"))
        except OSError as error:
            if not lacks_space(error):
                log.exception("job failed", extra={"job": job["id"]})
                why = f"a fault of the service: {type(error).__name__}: {reason_of(error)}"
                self._fail(job, TrainingFailedError("Training failed", why))
            else:
                self._defer(job, _no_room(reason_of(error)).problem)
        except Exception as error:
            log.exception("job failed", extra={"job": job["id"]})
            self._fail(
                job, TrainingFailedError("Training failed", f"a fault of the service: {type(error).__name__}: {error}")
            )

    def _defer(self, job: Job, problem: dict[str, Any]) -> None:
        """Put a job back until there is room on the disk; after the time that it may wait, it ends with the problem."""
        log.warning("job waits for room", extra={"job": job["id"], "reason": problem["detail"]})
        wait_s = self.settings.storage_wait_s
        self._settle(lambda: self.job_store.defer(job["id"], job["token"], problem, wait_s))

    def _fail(self, job: Job, error: TrainingFailedError) -> None:
        self._settle(lambda: self.job_store.end(job["id"], job["token"], problem=error.problem))

    def _settle(self, act: Any) -> None:
        """Write the end of a job, however often that must be tried while this worker lives."""
        while True:
            try:
                act()
            except Exception:
                log.exception("the ledger cannot be written")
                if self.stopping.wait(1.0):
                    return
            else:
                return

    # --- a training ---

    def _train(self, job: Job) -> None:
        """See a training through to its version. Raises FailError, LostError or StopError."""
        asked = orjson.loads(job["request"])
        folder = self.places.run(job["id"])
        self._room(folder.parent)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "asked.json").write_text(json.dumps(asked["recipe"]))
        self._kill_orphan(folder)
        watched = self._remembered(job)
        resumed = (folder / "state.pt").exists()
        step = (_read(folder / "progress.json").get("checkpoint") or {}).get("steps") if resumed else None
        said = f"goes on from step {step}" if step is not None else "begins"
        self._tell(job, watched, [_message(f"training {said}")])
        deaths = 0
        while True:
            reached = watched.reached
            code, said = self._child(job, asked, folder, watched)
            if code == 0:
                break
            if self.stopping.is_set():
                raise WorkerStoppingError
            if code == INTERRUPTED:
                code = -signal.SIGTERM
            if code == UNSOUND:
                raise TrainingFailedError("Training diverged", f"{said}; {_exportable(folder)}", 422)
            if code == TOO_LARGE:
                raise TrainingFailedError("Training too large", f"{said}; {_exportable(folder)}", 422)
            if code > 0:
                self._check_full(folder, said)
                why = said or f"its process ended with code {code}, which is a fault of the service"
                raise TrainingFailedError("Training failed", f"{why}; {_exportable(folder)}", 422 if said else 500)
            # killed from outside, by the kernel for its memory perhaps: not by what it trains on
            deaths = 1 if watched.reached > reached else deaths + 1
            if deaths >= self.settings.max_attempts:
                name = signal.Signals(-code).name
                detail = (
                    f"the process was killed {deaths} times ({name}) without getting further; {_exportable(folder)}"
                )
                raise TrainingFailedError("Training process lost", detail)
            self._tell(job, watched, [_message(f"the process was killed ({signal.Signals(-code).name}); again")])
        version, figures = self._published(job, asked, folder)
        result = {"model": job["model"], "version": version, "figures": figures}
        self._settle(lambda: self.job_store.end(job["id"], job["token"], result=pack(result), version=version))

    def _remembered(self, job: Job) -> Watched:
        """What has been told of a training by whoever ran it before."""
        watched = Watched(progress=job["progress"])
        for event in self.job_store.events_after(job["id"], 0):
            if event["event"] == "metrics":
                watched.epochs = max(watched.epochs, orjson.loads(event["data"])["epoch"])
            elif event["event"] == "checkpoint":
                watched.checkpoint = orjson.loads(event["data"])
                watched.reached = watched.checkpoint["step_number"]
        return watched

    def _child(self, job: Job, asked: Any, folder: Path, watched: Watched) -> tuple[int, str]:
        """Run the training's process to its end; answers its exit code and what it said last."""
        command = self._models("train", str(folder / "asked.json"), "--out", str(folder), "--resume", *self._common())
        gpus = min(asked.get("gpus", 1), self.devices or 1)
        if gpus > 1:
            command += ["--gpus", str(gpus)]
        elif asked.get("gpus", 1) > 1:
            self._tell(job, watched, [_message(f"asked for {asked['gpus']} devices; this worker has one")])
        with self._running(command, folder / "log", self.settings.training_threads) as child:
            begun, watched.weighed = time.monotonic(), 0.0
            watched.advanced = begun
            while child.poll() is None:
                self._look(job, folder, watched, child, time.monotonic() - begun)
                if self._stalled(folder, watched):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                    note = f"no progress for {self.settings.training_stall_s:.0f} s: its process was ended"
                    self._tell(job, watched, [_message(note)], charged=True)
                    return -signal.SIGKILL, ""
                if self.stopping.is_set():
                    return self._stopped(child), ""
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_S)
            code = child.returncode
        if code == 0:
            self._report(job, folder, watched)
        return code, _last_words(folder / "log")

    def _look(self, job: Job, folder: Path, watched: Watched, child: subprocess.Popen[bytes], took_s: float) -> None:
        """Tell what is new of a run, and hold it to its limits. Raises LostError or FailError, the child stopped."""
        try:
            self._report(job, folder, watched)
            self._hold(job)
            if took_s >= watched.weighed + WEIGH_S:
                watched.weighed = took_s
                self._limits(folder, child.pid, took_s)
        except ClaimLostError:
            self._stopped(child)
            raise
        except TrainingFailedError as error:
            self._stopped(child)
            raise error.adding(_exportable(folder)) from error
        except redis.RedisError:
            log.warning("the queue server is away; the training goes on")
        except Exception:
            log.warning("cannot look after the run; it goes on", exc_info=True)

    def _stalled(self, folder: Path, watched: Watched) -> bool:
        """Whether a run has written nothing for longer than it may, as one that hangs in native code."""
        stamp = tuple(_stamp(folder / name) for name in ("progress.json", "metrics.jsonl", "state.pt", "preview.png"))
        if stamp != watched.stamp:
            watched.stamp, watched.advanced = stamp, time.monotonic()
        return time.monotonic() - watched.advanced > self.settings.training_stall_s

    def _hold(self, job: Job) -> None:
        if not self.job_store.holds(job["id"], job["token"]):
            raise ClaimLostError

    def _report(self, job: Job, folder: Path, watched: Watched) -> None:
        """Events of what a run has written since the last look. Raises LostError."""
        notes: list[tuple[str, Any]] = []
        for line in _lines(folder / "metrics.jsonl"):
            if line["epoch"] > watched.epochs:
                notes.append(("metrics", line))
                watched.epochs = line["epoch"]
        place = _read(folder / "progress.json")
        further = False
        if place:
            progress = min(0.99, place["steps"] / max(1, place["steps_total"]))
            kept = place["checkpoint"]
            if kept and (watched.checkpoint is None or kept["steps"] > watched.checkpoint["step_number"]):
                further = kept["steps"] > watched.reached
                watched.reached = max(watched.reached, kept["steps"])
                watched.checkpoint = {"step_number": kept["steps"], **{k: kept[k] for k in ("epoch", "seconds")}}
                notes.append(("checkpoint", watched.checkpoint))
            if notes or progress - watched.progress >= LEAST_STEP:
                watched.progress = max(watched.progress, progress)
                told = {name: place[name] for name in ("epoch", "epochs", "step", "steps", "loss", "seconds")}
                notes.append(("progress", {"progress": round(watched.progress, 4), **told}))
        if notes:
            self._tell(job, watched, notes, further=further)
        self._show(job, folder, watched)

    def _tell(
        self,
        job: Job,
        watched: Watched,
        notes: list[tuple[str, Any]],
        *,
        further: bool = False,
        charged: bool = False,
    ) -> None:
        if not self.job_store.tell(job["id"], job["token"], notes, watched.progress, further=further, charged=charged):
            raise ClaimLostError
        with contextlib.suppress(redis.RedisError):
            self._news(job["id"])

    def _show(self, job: Job, folder: Path, watched: Watched) -> None:
        with contextlib.suppress(FileNotFoundError, redis.RedisError):
            stamp = (folder / "preview.png").stat().st_mtime_ns
            if stamp != watched.preview:
                self.front.set(preview_key(job["id"]), (folder / "preview.png").read_bytes(), ex=PREVIEW_KEEP_S)
                watched.preview = stamp

    def _limits(self, folder: Path, pid: int, took_s: float) -> None:
        """Raises FailError where a run takes more than it may."""
        chosen = self.settings
        seconds = max(took_s, _read(folder / "progress.json").get("seconds", 0.0))
        if seconds > chosen.training_timeout_s:
            raise TrainingFailedError(
                "Training too long", f"it ran for {seconds:.0f} s; at most {chosen.training_timeout_s:.0f} s may be"
            )
        self._weigh(pid, "Training too large")
        size = size_of(folder)
        if size > chosen.training_disk_bytes:
            raise TrainingFailedError(
                "Run too large", f"its folder holds {size} bytes; at most {chosen.training_disk_bytes} may be"
            )
        self._room(folder)

    def _weigh(self, pid: int, title: str) -> None:
        """Raise FailError where a child and its own children hold more memory than they may."""
        held, most = _anonymous_bytes(pid), self.settings.training_memory_bytes
        if held > most:
            detail = f"it held {held >> 20} MiB; at most {most >> 20} MiB may be: a smaller batch or network needs less"
            raise TrainingFailedError(title, detail, 422)

    def _room(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < self.settings.training_min_free_disk_bytes:
            least = self.settings.training_min_free_disk_bytes
            detail = f"the disk has {free >> 20} MiB left, and {least >> 20} MiB stay free"
            raise TrainingFailedError("Disk full", f"{detail}; delete trainings or datasets that are not needed", 507)

    def _check_full(self, folder: Path, said: str) -> None:
        """Raise FailError (507) where a child failed because the disk is full. `said` is its own reason, if any."""
        lines = (folder / "log").read_text(errors="replace").splitlines() if (folder / "log").exists() else []
        reason = next((os.strerror(number) for number in NO_SPACE if os.strerror(number) in "".join(lines[-1:])), None)
        if reason is not None:
            raise _no_room(reason).adding(_exportable(folder))
        if not said:
            self._room(folder)

    def _kill_orphan(self, folder: Path) -> None:
        """End the process that a worker thought dead left at work in a run's folder."""
        deadline = time.monotonic() + STOP_S
        while (pid := _holder(folder)) is not None:
            late = time.monotonic() > deadline
            if time.monotonic() > deadline + STOP_S:
                raise TrainingFailedError(
                    "Training process lost", f"the process {pid} works in its folder and cannot be ended"
                )
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.1 if late else 0.5)

    # --- a version of it ---

    def _published(self, job: Job, asked: Any, folder: Path) -> tuple[str, list[Any]]:
        """Measure a run and make it a version, which serves if it was asked to; answers its number and figures."""
        name, auxiliary_job = job["model"], folder / job["id"]
        auxiliary_job.mkdir(exist_ok=True)
        version = self._number(name, auxiliary_job)
        path = self.versions.path(name, version)
        against = self.registry.find(name)
        if against is not None and against.version == version:
            against = None
        measured = auxiliary_job / "measured.json"
        if not path.exists():
            self._tell(job, Watched(progress=0.99), [_message(f"measuring version {version} on the test split")])
            how = asked.get("evaluation", {})
            words = ["--checkpoints", str(auxiliary_job), "--version", version, "--job", job["id"]]
            words += [f"--count={how.get('count', 1000)}", f"--k={how.get('k', 100)}", *self._common(device=False)]
            words += ["--against", str(against.path)] if against else []
            said = self._short(job, self._models("publish", str(folder), *words), folder / "log")
            measured.write_bytes(orjson.dumps(said))
            if against is not None:
                self.versions.settle(name, against.version)
            with contextlib.suppress(FileExistsError):
                self.versions.publish(Path(said["path"]), name, version)
        said = _read(measured)
        self._serve_it(
            job, asked.get("serve", "if better"), version, said, None if against is None else against.version
        )
        return version, list(said.get("figures", []))

    def _number(self, name: str, folder: Path) -> str:
        """The version that what a job makes is to be, the same however often it is asked."""
        file = folder / "version"
        if not file.exists():
            self.registry.scan()
            part = folder / ".version.part"
            part.write_text(self.versions.reserve(name, self.registry.versions(name)))
            part.replace(file)
        return file.read_text()

    def _serve_it(self, job: Job, how: str, version: str, said: dict[str, Any], old: str | None) -> None:
        """Switch to a version by its measure, by wish, or because there is no other."""
        improved = better(said.get("figures", []), said.get("against", []))
        note = f"version {version} is there"
        if old is None or how == "always" or (how == "if better" and improved):
            problem = self._switch(job, version, old)
            note += f", but cannot serve: {problem}" if problem else " and serves"
        elif how == "if better":
            why = "it measures no better" if improved is not None else "the two cannot be compared"
            note += f"; version {old} goes on serving: {why}"
        else:
            note += f"; version {old} goes on serving"
        figures = {"figures": said.get("figures", []), "against": said.get("against", [])}
        self._tell(job, Watched(progress=0.99), [_message(note, version=version, **figures)])

    def _switch(self, job: Job, version: str, old: str | None) -> str:
        """Have a version serve once the workers have loaded it; returns why it does not, if they cannot.

        Without a worker the old version is not given up: nobody has loaded the new one.
        """
        name, waits, workers = job["model"], "", {}
        ref = f"{name}@{version}"
        self.versions.announce(name, version)
        until = time.monotonic() + LOAD_S
        while time.monotonic() < until and not self.stopping.is_set():
            try:
                workers = self._workers()
            except (redis.RedisError, OSError):
                workers = {}
                time.sleep(LOOK_S)
                continue
            if loaded(workers, ref):
                if why := refused(workers, ref):
                    self.versions.withdraw(name, version)
                    return why
                break
            if (missing := awaited(workers, ref)) != waits:
                waits = missing
                text = f"waiting, at most {LOAD_S:.0f} s, for version {version} to be loaded: {missing}"
                self._tell(job, Watched(progress=0.99), [_message(text)])
            time.sleep(0.1)
        if old is not None and not workers:
            self.versions.withdraw(name, version)
            return f"{awaited(workers, ref)}; version {old} goes on serving, PATCH /v1/models/{name} switches"
        self.versions.serve(name, version)
        return ""

    def _workers(self) -> dict[str, dict[str, Any]]:
        found: Any = self.front.hgetall(WORKERS)
        said = {name.decode(): unpack(data) for name, data in found.items()}
        return {name: one for name, one in said.items() if time.time() - one["at"] < FRESH_S}

    # --- the desk ---

    def _estimate(self, job: Job) -> None:
        """Time a few steps of a recipe."""
        asked = orjson.loads(job["request"])
        folder = self._scratch(job)
        (folder / "asked.json").write_text(json.dumps(asked["recipe"]))
        command = self._models("estimate", str(folder / "asked.json"), *self._common())
        said = self._short(job, command, folder / "log", timeout_s=self.settings.estimate_s)
        self._settle(lambda: self.job_store.end(job["id"], job["token"], result=pack(said)))

    def _import(self, job: Job) -> None:
        """Hold an uploaded file to its card, and make it a version that serves only where there is no other."""
        name = job["model"]
        folder = self._scratch(job)
        file = folder / FILE  # the API has put it there
        version = self._number(name, folder) if (folder / "version").exists() else ""
        if not version or not self.versions.path(name, version).exists():
            self._short(job, self._models("check", str(file)), folder / "log", answers=False)
        version = self._number(name, folder)
        known = self.registry.find(name)
        if known is not None and known.version == version:
            known = None  # made by whoever held this job before
        if known is not None:
            self.versions.settle(name, known.version)
        if not self.versions.path(name, version).exists():
            self.versions.publish(file, name, version)
        if known is None:
            self.versions.serve(name, version)
        result = {"model": name, "version": version}
        self._settle(lambda: self.job_store.end(job["id"], job["token"], result=pack(result), version=version))

    def _publication(self, job: Job) -> None:
        """Make the last checkpoint of a training that did not end well a version."""
        asked = orjson.loads(job["request"])
        folder = self.places.run(asked["training"])
        version, figures = self._published(job, asked, folder)
        result = {"model": job["model"], "version": version, "figures": figures}
        self._settle(lambda: self.job_store.end(job["id"], job["token"], result=pack(result), version=version))

    def _scratch(self, job: Job) -> Path:
        """A job's folder of files. It stays while the job may be run again, and goes when the job has ended."""
        folder = self.places.auxiliary_job(job["id"])
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _remove_scratch(self, job: Job) -> None:
        """Remove a job's folder of files if it has ended, whoever ended it; later sweeps would find it, too."""
        ended = self.job_store.states([job["id"]]).get(job["id"], ("cancelled", False))[0] in TERMINAL
        if ended:
            remove_tree(self.places.auxiliary_job(job["id"]))

    # --- children ---

    def _models(self, *words: str) -> list[str]:
        extra = self.settings.extra_models
        more = ["--extra-models", str(extra.resolve())] if extra else []
        polite = ["nice", "-n", str(self.settings.training_nice)]
        most = ["--memory-bytes", str(self.settings.training_memory_bytes)]
        return [*polite, sys.executable, "-m", "models", *words, "--parent", str(os.getpid()), *most, *more]

    def _common(self, *, device: bool = True) -> list[str]:
        chosen = self.settings
        words = ["--threads", str(chosen.training_threads), "--data-folder", str(self.places.datasets)]
        return [*words, "--device", chosen.training_device] if device else words

    @contextlib.contextmanager
    def _running(self, command: list[str], log_file: Path, threads: int) -> Iterator[subprocess.Popen[bytes]]:
        """A child in a group of its own, gone when the block is left."""
        with log_file.open("ab") as said:
            child = subprocess.Popen(  # noqa: S603 - our own program
                command,
                cwd=ROOT,
                env=_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if "publish" in command or "estimate" in command else subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
        try:
            yield child
        finally:
            if child.poll() is None:
                self._stopped(child)
            if child.stdout:
                child.stdout.close()

    @staticmethod
    def _stopped(child: subprocess.Popen[bytes]) -> int:
        """Ask a child for its checkpoint and its end; kill it if it takes too long. Answers its exit code."""
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return INTERRUPTED if child.returncode == -signal.SIGTERM else child.returncode

    def _short(
        self, job: Job, command: list[str], log_file: Path, *, answers: bool = True, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Run a child of some seconds; answers the JSON it printed. Raises FailError, LostError or StopError.

        It is held to the memory of a training, and to `timeout_s` or else the longest time of such a child.
        """
        limit_s = timeout_s or self.settings.evaluation_timeout_s
        until, weigh_at = time.monotonic() + limit_s, 0.0
        with self._running(command, log_file, self.settings.training_threads) as child:
            while child.poll() is None:
                if self.stopping.is_set():
                    raise WorkerStoppingError
                self._hold(job)
                if time.monotonic() > until:
                    detail = (
                        f"it took more than {limit_s:.0f} s; a smaller network, batch or number of samples takes less"
                    )
                    raise TrainingFailedError("Too long", detail, 422)
                if time.monotonic() > weigh_at:
                    self._weigh(child.pid, "Too large")
                    weigh_at = time.monotonic() + WEIGH_S
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_S)
            printed = child.stdout.read() if child.stdout else b""
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            raise TrainingFailedError(
                "Process lost", f"its process was killed ({name}), for its memory perhaps; try again", 503
            )
        if child.returncode:
            said = _last_words(log_file)
            self._check_full(log_file.parent, said)
            if not said:
                log.error(
                    "child failed", extra={"job": job["id"], "said": log_file.read_text(errors="replace")[-2000:]}
                )
            raise TrainingFailedError(
                "Not possible", said or f"the process ended with code {child.returncode}", 422 if said else 500
            )
        return dict(orjson.loads(printed.splitlines()[-1])) if answers else {}


def _no_room(reason: str) -> TrainingFailedError:
    detail = f"the disk is full ({reason}); delete trainings or datasets that are not needed"
    return TrainingFailedError("Disk full", detail, INSUFFICIENT_STORAGE)


def _stamp(path: Path) -> int:
    """When a file was written last; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _message(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return ("message", {"level": "info", "message": text, **more})


def _environment(threads: int) -> dict[str, str]:
    """The environment of a child: this one's without the service's settings, which are none of its business."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}
    return {**kept, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in text[: text.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):
            found.append(orjson.loads(line))
    return found


def _last_words(log_file: Path) -> str:
    """What a child said last of why it failed, if it was not a fault of ours."""
    lines = log_file.read_text(errors="replace").splitlines() if log_file.exists() else []
    return lines[-1].removeprefix("error: ") if lines and lines[-1].startswith("error: ") else ""


def _exportable(folder: Path) -> str:
    place = _read(folder / "progress.json").get("checkpoint")
    return f"its checkpoint of step {place['steps']} is kept and can be published" if place else "it left no checkpoint"


def _holder(folder: Path) -> int | None:
    """The process that works in a run's folder, if any does."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            text = file.read()
            return int(text) if text.isdecimal() else None
        return None


def _anonymous_bytes(leader: int) -> int:
    """Memory of a group of processes that is no file's: pictures read from a memory map do not count."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if os.getpgid(int(status.parent.name)) == leader:
                lines = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
                total += int(lines[0].split()[1]) << 10 if lines else 0  # one that is ending has none
    return total


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    with errors_end_the_program():
        chosen = load_settings()
        check(chosen)
    set_up(chosen.log_level, "training")
    trainer = TrainingWorker(chosen)
    guard = QueueGuard(chosen, trainer.stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_said: trainer.stop())
    guard.start()
    trainer.start()
    sys.exit(guard.exit_status())
