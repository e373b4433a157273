"""The command `reverie` against a real service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.imaging.pictures import png
from core.settings import Settings
from reverie import __version__
from reverie.cli import main
from reverie.cli.context import parse_options
from reverie.client import Client
from tests.api.helpers import ENLARGE, FAULTY, MODEL, TINY, decode_image
from tests.reverie.faulty_proxy import FaultyProxy
from tests.reverie.interrupts import interrupt_waiting, start_command
from tests.stack import ROOT, Stack, free_port

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(stack: Stack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs a command in an empty folder and returns exit status, standard
    output and standard error.
    """
    monkeypatch.setenv("REVERIE_URL", stack.url)
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return command


def lines(text: str) -> list[list[str]]:
    """Return the words of each line."""
    return [line.split() for line in text.splitlines()]


def test_it_is_installed_and_runs_as_a_module(stack: Stack) -> None:
    """The commands `reverie` and `python -m reverie` are the same, and import nothing of the
    service.
    """
    environment = {**os.environ, "REVERIE_URL": stack.url}
    module = subprocess.run(
        [sys.executable, "-m", "reverie", "models"], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    script = Path(sys.executable).with_name("reverie")
    process = subprocess.run([script, "models"], env=environment, capture_output=True, check=True)
    assert process.stdout == module.stdout
    program = "import sys, reverie.cli; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'workers')))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_it_prints_its_version(run: Run) -> None:
    """`--version` prints the version without a request."""
    assert run("--version") == (0, f"reverie {__version__}\n", "")


def test_sample_draws_a_picture(run: Run, tmp_path: Path) -> None:
    """`sample` saves a grid under the model's name and prints the model and the seed."""
    status, out, _ = run("sample", f"{MODEL}@1", "-n", "4", "--seed", "3", "--set", "output=draws")
    assert status == 0
    assert out.startswith(f"{MODEL}.png: 4 samples of {MODEL}@1, seed 3")
    assert decode_image((tmp_path / f"{MODEL}.png").read_bytes()).shape == (56, 56)
    run("sample", MODEL, "-n", "4", "--seed", "3", "--set", "output=draws", "-o", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / f"{MODEL}.png").read_bytes()
    run("sample", MODEL, "-n", "5", "-o", "five.npz")
    with np.load(tmp_path / "five.npz") as kept:
        assert kept["images"].shape == (5, 1, 28, 28)
    assert run("sample", MODEL, "-o", "five.gif")[0] == 1


def test_a_model_has_a_sample_sheet(run: Run, tmp_path: Path) -> None:
    """It is saved under the model's name."""
    assert run("models", "sheet", f"{MODEL}@1")[0] == 0
    assert decode_image((tmp_path / f"{MODEL}.png").read_bytes()).shape == (252, 252)


def test_decode_takes_numbers_or_a_file(run: Run, tmp_path: Path) -> None:
    """Codes are arguments, also with a minus sign, or an NPZ file; other ones are a usage error."""
    status, out, _ = run("decode", MODEL, "0.5,-1.2", "-0.3,0.8", "--seed", "3", "-o", "two.png")
    assert status == 0
    assert out.startswith(f"two.png: decoded by {MODEL}@1, seed 3")
    assert decode_image((tmp_path / "two.png").read_bytes()).shape == (28, 56)
    np.savez(tmp_path / "codes.npz", codes=np.array([[0.5, -1.2], [-0.3, 0.8]]))
    assert run("decode", MODEL, "codes.npz", "--seed", "3", "-o", "again.png")[0] == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert run("decode", MODEL, "codes.npz", "-n", "3")[0] == 0
    assert decode_image((tmp_path / f"{MODEL}.png").read_bytes()).shape == (56, 84)
    assert run("decode", MODEL, "none.npz")[0] == 2
    assert run("decode", MODEL, "half,1")[0] == 2
    status, _, error = run("decode", MODEL, "0.5")
    assert status == 1
    assert "a code has 2 numbers here, not 1" in error


def test_sample_can_write_to_standard_output(stack: Stack, tmp_path: Path) -> None:
    """`sample -o -` writes the image, and nothing else, to standard output."""
    process = subprocess.run(
        [sys.executable, "-m", "reverie", "--url", stack.url, "sample", MODEL, "-n", "1", "-o", "-"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert decode_image(process.stdout).shape == (28, 28)


def test_upscale_enlarges_a_picture(run: Run, tmp_path: Path) -> None:
    """`upscale` saves the image in the format of the suffix; the service rejects an unknown
    method.
    """
    small = np.arange(37 * 50 * 3, dtype=np.uint8).reshape(3, 37, 50)
    (tmp_path / "small.png").write_bytes(png(small))
    status, out, err = run("upscale", "small.png", "--scale", "3", "--model", ENLARGE, "--seed", "1")
    assert (status, err) == (0, "")
    assert out.startswith(f"small-large.png: upscaled by {ENLARGE}@1, seed 1")
    large = decode_image((tmp_path / "small-large.png").read_bytes())
    assert large.shape == (111, 150, 3)
    assert (large[1::3, 1::3] == small.transpose(1, 2, 0)).all()
    assert run("upscale", "small.png", "-o", "large.jpg", "--set", "quality=80")[0] == 0
    assert (tmp_path / "large.jpg").read_bytes()[:2] == b"\xff\xd8"
    status, _, err = run("upscale", "small.png", "--method", "magic")
    assert status == 1
    assert "magic" in err
    assert run("upscale", "nothing.png")[0] == 2


def test_models_are_listed_and_shown(run: Run) -> None:
    """`models` prints a line per model, `models show` the card, and `--json` prints JSON."""
    status, out, _ = run("models")
    assert status == 0
    assert lines(out)[0][:2] == ["MODEL", "ACTIVE"]
    assert [[*line[:2], line[3]] for line in lines(out) if line[0] == MODEL] == [[MODEL, "1", "vae"]]
    _, out, _ = run("models", "show", MODEL)
    assert ["manifold", "size", "20"] in [line[:3] for line in lines(out)]
    assert "nats" in out
    _, out, _ = run("--json", "models")
    assert {FAULTY, TINY, MODEL} <= {model["name"] for model in json.loads(out)}


def test_versions_are_exported_imported_and_activated(run: Run, tmp_path: Path) -> None:
    """A version is exported, imported as a new one, and activated; the first one can be activated
    again.
    """
    status, out, _ = run("models", "export", f"{TINY}@1")
    file = tmp_path / f"{TINY}-1.safetensors"
    assert status == 0
    assert out.startswith(f"{file.name}: {TINY}@1, ")
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(0.5).tobytes()  # its only weight
    file.write_bytes(data)
    status, out, _ = run("models", "import", TINY, file.name)
    assert status == 0
    second = out.split()[0].partition("@")[2]
    assert out == f"{TINY}@{second} is not active\n"
    for version in (second, "1"):
        assert run("models", "use", TINY, version)[:2] == (0, f"{TINY}@{version} is active\n")
        serving = [line[0] for line in lines(run("models", "versions", TINY)[1]) if "yes" in line]
        assert serving == [version]
    assert run("models", "use", TINY, "99")[0] == 1


def test_datasets_are_added_shown_and_deleted(run: Run, tmp_path: Path) -> None:
    """A dataset is added (by default under the file's name), shown and deleted."""
    with zipfile.ZipFile(tmp_path / "bars.zip", "w") as archive:
        for number in range(20):
            pixels = np.zeros((1, 8, 8), np.uint8)
            pixels[0, number % 8, : 1 + number // 8] = 255
            archive.writestr(f"{number}.png", png(pixels))
    status, out, err = run("datasets", "add", "bars.zip", "--validation", "0.2", "--test", "0.2")
    assert (status, out, err) == (0, "bars: pictures of 1×8×8; 12 train, 4 validation, 4 test\n", "")
    _, out, _ = run("datasets")
    assert ["bars", "pictures", "1×8×8", "12", "4", "4"] in [line[:6] for line in lines(out)]
    assert json.loads(run("datasets", "show", "bars")[1])["counts"]["train"] == 12
    assert run("datasets", "preview", "bars", "-n", "4", "-o", "bars.png")[0] == 0
    assert decode_image((tmp_path / "bars.png").read_bytes()).shape == (16, 16)
    assert run("datasets", "images", "bars", "--after", "1", "-n", "6", "--columns", "3")[0] == 0
    assert decode_image((tmp_path / "bars-train.png").read_bytes()).shape == (16, 24)
    assert run("datasets", "delete", "bars") == (0, "", "")


def test_an_inactive_version_is_deleted(run: Run, tmp_path: Path) -> None:
    """Inactive versions can be deleted; active and shipped versions and shipped models cannot."""
    file = tmp_path / "tiny.safetensors"
    assert run("models", "export", TINY, "-o", file.name)[0] == 0
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(0.25).tobytes()
    file.write_bytes(data)
    made = run("models", "import", TINY, file.name, "--shared")[1].split()[0]
    assert run("models", "delete", made) == (0, "", "")
    assert made.partition("@")[2] not in [line[0] for line in lines(run("models", "versions", TINY)[1])]
    for ref in (made, f"{TINY}@1", TINY):
        assert run("models", "delete", ref)[0] == 1


def test_me_shows_the_caller(run: Run) -> None:
    """Without keys the caller has no name and all roles; making a model private needs keys."""
    status, out, _ = run("me")
    assert status == 0
    assert out.startswith("no key: read, run, train, admin")
    assert run("models", "share", TINY) == (0, f"{TINY} is shared\n", "")
    status, _, err = run("models", "share", TINY, "--private")
    assert (status, "without API keys" in err) == (1, True)
    assert run("datasets", "share", "nothing")[0] == 1


def test_jobs_are_watched_saved_cancelled_and_deleted(run: Run, stack: Stack, tmp_path: Path) -> None:
    """A finished job is watched, saved and deleted; a running one is cancelled."""
    with Client(stack.url) as reverie:
        slow: dict[str, Any] = {"steps": 400, "seconds": 0.05}
        first, second = (reverie.submit("samples", TINY, seed=1, **options).id for options in ({}, slow))
    assert run("jobs", "watch", first)[:2] == (0, f"{first} succeeded\n")
    status, out, _ = run("jobs", "--kind", "samples", "--model", TINY, "-n", "2")
    assert [line[0] for line in lines(out)[1:]] == [second, first]
    assert run("jobs", "cancel", second)[:2] == (0, f"{second} cancelled\n")
    assert run("jobs", "result", first, "-o", "one.png")[0] == 0
    assert decode_image((tmp_path / "one.png").read_bytes()).shape == (8, 8)
    assert json.loads(run("jobs", "show", first)[1])["status"] == "succeeded"
    assert run("jobs", "delete", first) == (0, "", "")
    status, _, err = run("jobs", "show", first)
    assert status == 1
    assert "no job" in err


TRAIN = ["vae", "cli-digits", "--set", "config.hidden=[16]", "--set", "config.latents=2"]
LONG = ["--set", "training.epochs=100000", "--set", "training.batch_size=10"]
SHORT = ["--set", "training.epochs=2", "--set", "training.batch_size=10"]


@pytest.fixture
def dataset(run: Run, tmp_path: Path) -> str:
    """Upload a dataset to train on and return its name."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "cli-digits.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"{number}.png", png(random.integers(0, 2, (1, 8, 8), np.uint8) * 255))
    assert run("datasets", "add", "cli-digits.zip")[0] == 0
    return "cli-digits"


def test_a_training_is_followed_until_it_ends(run: Run, dataset: str, tmp_path: Path) -> None:
    """`train --follow` prints a line per epoch, then the version, whether it is active, and its
    figures.
    """
    status, out, err = run("train", *TRAIN, *SHORT, "--name", "cli-vae", "--seed", "7", "--follow")
    assert status == 0
    assert [line.split()[:2] for line in err.splitlines() if line.startswith("epoch")] == [
        ["epoch", "1"],
        ["epoch", "2"],
    ]
    printed = lines(out)
    assert printed[0][1] == "succeeded"
    assert printed[1] == ["cli-vae@1", "is", "active"]
    assert printed[3][0] == "nll"
    assert run("sample", "cli-vae", "-n", "1", "-o", "a.png")[0] == 0
    assert decode_image((tmp_path / "a.png").read_bytes()).shape == (8, 8)
    assert run("jobs", "curves", printed[0][0], "-o", "curves.png")[0] == 0
    assert decode_image((tmp_path / "curves.png").read_bytes()).ndim >= 2
    status, out, _ = run("jobs", "previews", printed[0][0])
    assert (status, out) == (0, f"{printed[0][0]}: 2 previews\n")
    assert {file.name for file in (tmp_path / printed[0][0]).iterdir()} == {"1.png", "2.png"}
    assert run("jobs", "previews", printed[0][0], "-o", "film")[1] == "film: 2 previews\n"
    assert run("jobs", "previews", printed[0][0], "-o", ".")[1] == ".: 2 previews\n"
    assert (tmp_path / "2.png").exists()
    status, _, err = run("jobs", "result", printed[0][0], "-o", "result.png")
    assert status == 1
    assert "application/json" in err
    assert not (tmp_path / "result.png").exists()
    assert run("jobs", "result", printed[0][0])[0] == 0
    assert json.loads((tmp_path / f"{printed[0][0]}.json").read_text())["version"] == "1"
    assert run("models", "delete", "cli-vae")[0] == 0
    status, out, _ = run("jobs", "watch", printed[0][0])
    assert (status, out) == (0, f"{printed[0][0]} succeeded\ncli-vae@1 was deleted\n")


def test_a_result_on_standard_output_has_the_format_of_its_kind(stack: Stack, client: Client) -> None:
    """`jobs result -o -` writes a picture as PNG, and any other result as JSON."""
    bar = np.zeros((1, 28, 28), np.uint8)
    bar[:, :, 14:] = 255
    jobs = [client.submit("samples", MODEL, seed=1), client.submit("energies", MODEL, [png(bar)], seed=1)]
    results = []
    for job in jobs:
        assert client.wait(job.id).status == "succeeded"
        words = ["--url", stack.url, "jobs", "result", job.id, "-o", "-"]
        process = subprocess.run([sys.executable, "-m", "reverie", *words], cwd=ROOT, capture_output=True, check=True)
        results.append(process.stdout)
    assert decode_image(results[0]).shape == (28, 28)
    assert len(json.loads(results[1])["energies"]) == 1


def test_a_training_continues_after_ctrl_c(run: Run, dataset: str, stack: Stack) -> None:
    """Ctrl-C stops the watching but not the training, and prints the command to watch again."""
    with start_command(stack.url, "train", *TRAIN, *LONG, "--name", "cli-long", "--follow") as watcher:
        assert watcher.stderr
        training = watcher.stderr.readline().partition(":")[0]
        while (line := watcher.stderr.readline()).startswith("queued"):
            pass
        assert "training begins" in line
        watcher.send_signal(signal.SIGINT)
        last = watcher.stderr.read()
    assert watcher.returncode == 130
    assert f"reverie jobs watch {training}" in last
    assert json.loads(run("jobs", "show", training)[1])["status"] == "running"
    assert run("jobs", "pause", training)[1] == f"{training} paused\n"
    assert run("jobs", "resume", training)[1] == f"{training} queued\n"
    assert run("jobs", "cancel", training)[1] == f"{training} cancelled\n"


def test_ctrl_c_cancels_the_job_of_a_request(proxy: FaultyProxy, client: Client) -> None:
    """A job whose id nobody knows is cancelled if the command that waits for it is interrupted."""
    words = ["sample", TINY, "--set", "steps=400", "--set", "seconds=0.05", "-o", "-"]
    status, err, job_id = interrupt_waiting(proxy, *words)
    assert status == 130
    assert err.splitlines()[-1] == f"{job_id} was cancelled"
    assert client.job(job_id).status == "cancelled"


def test_a_cancelled_job_is_a_failure_for_who_follows_it(run: Run, stack: Stack, client: Client, dataset: str) -> None:
    """`jobs watch` and `train --follow` exit with status 1 and a sentence if the job is cancelled;
    `jobs cancel` with 0.
    """
    job = client.submit("samples", TINY, seed=1, steps=400, seconds=0.05)
    assert run("jobs", "cancel", job.id) == (0, f"{job.id} cancelled\n", "")
    assert run("jobs", "watch", job.id) == (1, "", f"reverie: {job.id} cancelled: it has no result\n")
    with start_command(stack.url, "train", *TRAIN, *LONG, "--name", "cli-cancelled", "--follow") as follower:
        assert follower.stderr
        training = follower.stderr.readline().partition(":")[0]
        client.cancel(training)
        _, err = follower.communicate(timeout=60)
    assert follower.returncode == 1
    assert err.splitlines()[-1] == f"reverie: {training} cancelled: it has no result"


def test_families_and_dry_runs_are_printed(run: Run, dataset: str) -> None:
    """`families` prints every option, and a dry run prints parameters, memory and time."""
    _, out, _ = run("families")
    assert ["vae", "training.epochs"] in [line[:2] for line in lines(out)]
    status, out, _ = run("train", *TRAIN, *SHORT, "--dry-run")
    assert status == 0
    assert [line[0] for line in lines(out)] == ["parameters", "memory", "time"]
    status, _, err = run("train", *TRAIN, "--set", "training.epochs=0")
    assert status == 1
    assert "recipe.training.epochs" in err


def test_errors_are_printed_on_standard_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors go to standard error; the exit status is 1, or 2 for wrong usage."""
    status, out, err = run("sample", "gan")
    assert (status, out) == (1, "")
    assert MODEL in err
    status, _, err = run("sample", MODEL, "--set", "temperature=hot")
    assert status == 1
    assert "temperature" in err
    assert run("sample", MODEL, "--set", "temperature")[0] == 2
    assert run("sample")[0] == 2
    assert run("samples")[0] == 2
    status, _, err = run("jobs", "result", "job_0", "-o", "a.png")
    assert status == 1
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("REVERIE_URL", url)
    status, _, err = run("--json", "models")
    assert status == 1
    assert url in err


def test_options_are_json_or_strings() -> None:
    """Options are given as `a.b=c`, as `python -m models train` accepts them."""
    assert parse_options(["a.b=1", "a.c=word", "d=[1, 2]"]) == {"a": {"b": 1, "c": "word"}, "d": [1, 2]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", MODEL, "--set", "a=1", "--set", "a.b=2"], "a is set to 1 and has no parts"),
        (["sample", MODEL, "--set", "images=[]"], "images is no option of a model"),
        (["sample", MODEL, "--set", "seed=3"], "seed is set by an argument or option"),
        (["decode", MODEL, "0,0", "--set", "model=x"], "model is set by an argument or option"),
        (["upscale", "a.png", "--set", "on_progress=1"], "on_progress is no option"),
        (["train", "vae", "digits", "--recipe", "list.json"], "write a JSON object"),
        (["train", "vae", "digits", "--recipe", "a.png"], "is not JSON"),
        (["train", "vae", "digits", "--recipe", "flat.json", "--set", "training.epochs=2"], "training is set to 3"),
        (["datasets", "add", "nowhere.zip"], "there is no such file"),
        (["datasets", "add", "mnst"], "there is no such file"),
        (["datasets", "add", "folder"], "is a folder"),
        (["datasets", "add", "a.png", "--webhook", "http://localhost"], "an upload is no job"),
        (["datasets", "add", "a.png", "--webhook-event", "job.failed"], "an upload is no job"),
        (["datasets", "add", "mnist", "--labels", "a.png"], "it works for an uploaded file"),
        (["datasets", "add", "http://localhost/a.zip", "--labels", "a.png"], "it works for an uploaded file"),
    ],
)
def test_an_option_without_effect_is_wrong_usage(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    """What cannot be sent is a usage error that says why; nothing is left out silently."""
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "flat.json").write_text('{"training": 3}')
    (tmp_path / "a.png").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    status, _, err = run(*words)
    assert status == 2, err
    assert message in " ".join(err.split())


def test_the_client_variables_do_not_stop_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service ignores REVERIE_URL and REVERIE_KEY."""
    monkeypatch.setenv("REVERIE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("REVERIE_KEY", "open-sesame")
    assert Settings().port == 8000
