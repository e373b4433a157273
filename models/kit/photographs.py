"""Cut photographs into patches of 96×96 pixels, on which super-resolution is trained.

The 47 photographs are in four Debian packages, which are verified by SHA-256. Each photograph is
used at a half, a third and a quarter of its size, which removes JPEG artefacts and makes edges as
sharp as in small images. Patches overlap; those with the most structure are kept. The patches of
five photographs (`TUNING`) are for validation. None is a test photograph of
`benchmarks/superres.py`.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SHA256 = {
    "lomiri-wallpapers-16.04": "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    "plasma-workspace-wallpapers": "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    "lxqt-themes": "d518df36b515b09d36cb00b12645dd8ce170bb82bb0966297741905ce3edc8e1",
    "mate-backgrounds": "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
}
LICENSES = {  # by the packages' copyright files
    "lomiri-wallpapers-16.04": "CC BY 4.0 or CC BY-SA 4.0, per file",
    "plasma-workspace-wallpapers": "GPL-2+",
    "lxqt-themes": "LGPL-2.1+",
    "mate-backgrounds": "GPL-2+",
}
PLASMA = "BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am"
LXQT = (
    "Butterfly-Kenneth-Wimer Valendas after-the-rain appleflower beam butterfly cloud drop flowers fog "
    "this-is-not-windows"
)
NO_PHOTOGRAPH = ("analogpattern", "umang")
TUNING = ("FallenLeaf", "Garden", "Storm", "Wine_by_Jakkub_Mede", "flowers")
EDGE = 96
STRIDES = {2: 64, 3: 48, 4: 48}  # reduction factor of a photograph → pixels between two patches
TRAINING, HELD_BACK = 24000, 960
INSTRUCTIONS = (
    "on Debian or Ubuntu `apt-get download` of {names} fetches them; put the .deb files into the folder {folder}, or "
    "their contents with dpkg -x into {folder}/files"
)


def patches(folder: Path) -> tuple[np.ndarray, str]:
    """Return the training patches followed by the validation patches, and their SHA-256.

    The patches are uint8 (N, 3, 96, 96), memory-mapped. The first call cuts them from the
    photographs and stores them in `folder`; the SHA-256, in hex, is of their bytes. Raises
    ValueError if the photographs are missing; the message says how to get the photographs.
    """
    cache = folder / f"patches-{TRAINING}-{HELD_BACK}.npy"
    if not cache.is_file():
        _cut(photographs(folder), cache)
    array = np.load(cache, mmap_mode="c")
    return array, hashlib.sha256(array.tobytes()).hexdigest()


def photographs(folder: Path) -> dict[str, Path]:
    """Return the paths of the 47 training photographs in `folder`, keyed by name.

    If some are missing there, the packages that have them are downloaded and unpacked first.

    Raises ValueError if that is not possible.
    """
    root = _files(folder)
    paths: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.suffix.lower() not in {".jpg", ".png"}:
            continue
        name = path.relative_to(root).as_posix()
        stem = path.stem
        lomiri = path.parent.name == "backgrounds" and not stem.startswith(NO_PHOTOGRAPH)
        lxqt = "lxqt/wallpapers/" in name and stem in LXQT.split()
        if lomiri or lxqt or "backgrounds/mate/nature/" in name:
            paths[stem] = path
        elif "share/wallpapers/" in name and stem == "2560x1600" and path.parents[2].name in PLASMA.split():
            paths[path.parents[2].name] = path
    if len(paths) != 47:
        raise ValueError(f"{len(paths)} of 47 photographs are in {root.name}; {_instructions(folder)}")
    return dict(sorted(paths.items()))


def smaller(photograph: Image.Image, factor: int) -> Image.Image:
    """Return a photograph at 1/`factor` of its size in pixels, by an antialiased Lanczos filter."""
    width, height = photograph.size
    return photograph.resize((width // factor, height // factor), Image.Resampling.LANCZOS)


def structure(patch: np.ndarray) -> float:
    """Return how much neighbouring pixels of a patch differ on average, in grey levels.

    `patch` is (H, W, 3). The result is the sum of the mean absolute differences along both axes of
    the grey values; it is near 0 for sky.
    """
    grey = patch.astype(np.float32).mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def _cut(photographs_by_name: Mapping[str, Path], target: Path) -> None:
    """Cut the photographs into patches; write the chosen patches to the file `target`.

    The training patches, which come first, are those with the most structure. The validation
    patches are spread over the half with more structure.
    """
    selected = []
    for held_back, count in ((False, TRAINING), (True, HELD_BACK)):
        candidates = list(_candidates(photographs_by_name, held_back=held_back))
        ranked = np.argsort([-structure for structure, _ in candidates], kind="stable")
        if len(ranked) < count:
            raise ValueError(f"{len(ranked)} patches instead of {count}")
        # validation patches are spread over the ranking, so that they are not only the hardest ones
        step = max(1, len(ranked) // (2 * count)) if held_back else 1
        selected += [candidates[index][1] for index in sorted(ranked[::step][:count])]
    part = target.with_name(f".{target.name}")
    with part.open("wb") as file:
        np.save(file, np.stack(selected).transpose(0, 3, 1, 2).copy())
    os.replace(part, target)  # noqa: PTH105


def _candidates(photographs_by_name: Mapping[str, Path], *, held_back: bool) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (structure, patch) for every patch of the training photographs.

    With `held_back`, the patches are those of the validation photographs (`TUNING`) instead.
    """
    for name, path in photographs_by_name.items():
        if (name in TUNING) != held_back:
            continue
        with Image.open(path) as opened:
            whole = opened.convert("RGB")
        for factor, stride in STRIDES.items():
            pixels = np.asarray(smaller(whole, factor))
            for top in range(0, pixels.shape[0] - EDGE + 1, stride):
                for left in range(0, pixels.shape[1] - EDGE + 1, stride):
                    patch = pixels[top : top + EDGE, left : left + EDGE]
                    yield structure(patch), patch


def _files(folder: Path) -> Path:
    """Return the folder of the unpacked Debian packages; download and unpack them if it is missing.

    Raises ValueError if a package cannot be downloaded or unpacked, or if its SHA-256 is not the
    known one.
    """
    files = folder / "files"
    if files.is_dir():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    if not all(_debs(folder).values()) and shutil.which("apt-get"):
        subprocess.run(["apt-get", "download", "-q", *SHA256], cwd=folder, capture_output=True, check=False)  # noqa: S603, S607
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name, deb in _debs(folder).items():
            if deb is None or not shutil.which("dpkg"):
                raise ValueError(f"the photographs are not here: {_instructions(folder)}")
            if hashlib.sha256(deb.read_bytes()).hexdigest() != SHA256[name]:
                raise ValueError(f"{deb.name} is another version of {name} than the one known by its SHA-256")
            subprocess.run(["dpkg", "-x", str(deb.resolve()), scratch], check=True)  # noqa: S603, S607
        Path(scratch, "usr").rename(folder / "unpacked")
    (folder / "unpacked").rename(files)
    return files


def _debs(folder: Path) -> dict[str, Path | None]:
    """Return the path of each Debian package in `folder`, keyed by name; None for a missing
    package.
    """
    return {name: next(iter(sorted(folder.glob(f"{name}_*.deb"))), None) for name in SHA256}


def _instructions(folder: Path) -> str:
    return INSTRUCTIONS.format(names=", ".join(SHA256), folder=f"{folder.parent.name}/{folder.name}")
