"""Routes of datasets: an upload streams to the disk, a child process converts it, and what came of it has a name."""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.access import caller_of
from api.audit import describe
from api.auth import Caller
from api.errors import (
    ConflictError,
    FullError,
    InvalidError,
    MalformedError,
    NotFoundError,
    ProblemError,
    TooLargeError,
    field_errors,
)
from api.openapi import DATASET, PREVIEW, answered, dataset_body, listed, problem_responses
from api.permissions import Permissions
from api.quotas import Quotas
from api.responses.render import JSON, PNG
from api.streaming_upload import StreamingUpload
from core.datasets.readers.source import DISK_FULL, ConversionOptions
from core.datasets.store import NAME, Datasets, InUseError, NameTakenError
from core.settings import Settings

log = logging.getLogger(__name__)

PATH = "/v1/datasets"
AT_ONCE = 2
"""Conversions at a time in one API process; further ones wait with their upload on the disk."""

_LOOK_S = 0.5
_ROOT = Path(__file__).resolve().parents[2]
_EDGE = 4096
_LARGEST_JSON = 64 << 10
_NO_ROOM = "the disk has no room for this dataset; delete others, or send a smaller one"


_SHARED = "Whether everybody may use the dataset; by default a new one is its owner's alone."


class DatasetChange(BaseModel):
    """What is to change of a dataset."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"shared": True}})

    shared: bool = Field(description="Whether everybody may use the dataset, or its owner alone.")


class Asked(BaseModel):
    """The fields beside the file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=f"^{NAME.pattern}$", description="Of the dataset: letters, digits, `.`, `-`, `_`.")
    format: Literal["idx", "npz", "zip"] | None = Field(None, description="Of the file; found out where left out.")
    kind: Literal["pictures", "photographs"] = Field(
        "pictures", description="`photographs`, of any size, are cut into patches of 96×96 for super-resolution."
    )
    resize: str | None = Field(
        None,
        pattern=r"^[0-9]{1,4}x[0-9]{1,4}$",
        description="HEIGHTxWIDTH: scale each picture of a ZIP until it covers that size, and cut it at the centre.",
    )
    validation: float = Field(0.1, ge=0, le=0.5, description="Share held back for choices, where the file has no such.")
    test: float = Field(0.1, ge=0, le=0.5, description="Share held back for the last measurement, likewise.")
    shared: bool | None = Field(None, description=_SHARED)

    def wish(self, settings: Settings) -> ConversionOptions:
        """The same for the converter."""
        size = tuple(map(int, self.resize.split("x"))) if self.resize else None
        if size is not None and not all(1 <= edge <= _EDGE for edge in size):
            raise _wrong("resize", f"each edge must be 1 to {_EDGE} pixels, as in 64x64")
        return ConversionOptions(
            format=self.format or "",
            kind="photographs" if self.kind == "photographs" else "",
            resize=(size[0], size[1]) if size else None,
            validation=self.validation,
            test=self.test,
            unpacked_bytes=settings.max_unpacked_bytes,
            reserve_bytes=settings.min_free_disk_bytes,
        )


class Named(BaseModel):
    """A set that is known by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: Literal["mnist", "fashion-mnist"] = Field(description="Which; its own test part is kept.")
    name: str | None = Field(None, pattern=f"^{NAME.pattern}$", description="Of the dataset; by default the source's.")
    validation: float = Field(0.1, ge=0, le=0.5, description="Share of its training part held back for choices.")
    shared: bool | None = Field(None, description=_SHARED)

    def wish(self, settings: Settings) -> ConversionOptions:
        """The same for the converter."""
        limits = settings.max_unpacked_bytes, settings.min_free_disk_bytes
        return ConversionOptions(validation=self.validation, unpacked_bytes=limits[0], reserve_bytes=limits[1])


def add_datasets(
    app: FastAPI, settings: Settings, datasets: Datasets, permissions: Permissions, quotas: Quotas
) -> None:
    """Put the routes into the application."""
    router = APIRouter(prefix="/v1")
    _add_making(router, settings, datasets, permissions, quotas)
    _add_looking(router, datasets, permissions)
    _add_changing(router, datasets, permissions)
    app.include_router(router)


def _add_making(
    router: APIRouter, settings: Settings, datasets: Datasets, permissions: Permissions, quotas: Quotas
) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    @router.post(
        "/datasets",
        summary="Upload a dataset, or take one by name",
        tags=["datasets"],
        status_code=201,
        response_class=Response,
        responses={
            201: {"description": "Made", "content": {JSON: {"schema": DATASET}}},
            200: {"description": "It was there already, with the same content", "content": {JSON: {"schema": DATASET}}},
            **problem_responses(400, 403, 408, 409, 413, 415, 422, 429, 507),
        },
        openapi_extra=dataset_body(Asked, Named, settings),
    )
    async def create(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        caller = caller_of(request.scope)
        await quotas.check_room(caller, 1)
        async with _workshop(datasets) as folder:
            if kind == JSON:
                named = _named(await _small(request))
                name, wish, shared = named.name or named.source, named.wish(settings), named.shared
                await _check_name(datasets, permissions, name, caller)
                async with gate:
                    await _fetch(request, folder, named, settings)
                    said = {**await _convert(request, folder, wish, settings), "source": named.source}
            else:
                spool = StreamingUpload(
                    folder, ("file", "labels"), tuple(Asked.model_fields), settings.min_free_disk_bytes
                )
                asked = _asked(await spool.read(request))
                name, wish, shared = asked.name, asked.wish(settings), asked.shared
                await _check_name(datasets, permissions, name, caller)
                async with gate:
                    said = await _convert(request, folder, wish, settings)
            if await _check_name(datasets, permissions, name, caller):
                await quotas.check_room(caller, int(said.get("bytes", 0)))
                await permissions.claim("dataset", name, caller, shared=shared)
            about, new = await asyncio.to_thread(_added, datasets, folder / "made", name, said)
            if not new and shared is not None:
                await permissions.share("dataset", name, caller, shared=shared)
        return Response(
            orjson.dumps(_body(about, permissions, caller)), 201 if new else 200, {"Location": f"{PATH}/{name}"}, JSON
        )


def _found(datasets: Datasets, permissions: Permissions, name: str, caller: Caller) -> dict[str, Any]:
    about = datasets.get(name) if permissions.can_use("dataset", name, caller) else None
    if about is None:
        raise NotFoundError(f"no dataset {name[:120]!r}; GET {PATH} lists them")
    return about


async def _check_name(datasets: Datasets, permissions: Permissions, name: str, caller: Caller) -> bool:
    """Return whether a name is new; where it is not, the dataset that has it must be one that the caller may use.

    Raises ConflictError for a name that is taken by what the caller may not see.
    """
    await permissions.refresh()
    if await asyncio.to_thread(datasets.get, name) is None:
        return True
    if not permissions.can_use("dataset", name, caller):
        raise ConflictError(f"the name {name} is taken by another dataset; choose another name")
    return False


def _add_looking(router: APIRouter, datasets: Datasets, permissions: Permissions) -> None:
    @router.get(
        "/datasets",
        summary="List datasets, by name",
        tags=["datasets"],
        response_class=Response,
        responses={**answered(listed(DATASET)), **problem_responses(422)},
    )
    async def listing(
        request: Request,
        after: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        await permissions.refresh()
        caller = caller_of(request.scope)
        about = await asyncio.to_thread(
            datasets.listing, after, limit + 1, lambda name: permissions.can_use("dataset", name, caller)
        )
        data = [_body(one, permissions, caller) for one in about[:limit]]
        ends = {"first_id": data[0]["name"] if data else None, "last_id": data[-1]["name"] if data else None}
        body = {"object": "list", "data": data, "has_more": len(about) > limit, **ends}
        return Response(orjson.dumps(body), media_type=JSON)

    @router.get(
        "/datasets/{name}",
        summary="A dataset",
        tags=["datasets"],
        response_class=Response,
        responses={**answered(DATASET), **problem_responses(404)},
    )
    async def dataset(request: Request, name: str) -> Response:
        await permissions.refresh()
        caller = caller_of(request.scope)
        about = _found(datasets, permissions, name, caller)
        return Response(orjson.dumps(_body(about, permissions, caller)), media_type=JSON)

    @router.get(
        "/datasets/{name}/preview",
        summary="Some of a dataset's pictures as a grid",
        tags=["datasets"],
        response_class=Response,
        responses={**PREVIEW, **problem_responses(404, 422)},
    )
    async def preview(
        request: Request,
        name: str,
        split: Literal["train", "validation", "test"] = "train",
        count: Annotated[int, Query(ge=1, le=400)] = 64,
    ) -> Response:
        await permissions.refresh()
        _found(datasets, permissions, name, caller_of(request.scope))
        picture = await asyncio.to_thread(datasets.preview, name, split, count)
        if picture is None:
            raise NotFoundError(f"the dataset {name} has no pictures in its {split} part")
        return Response(picture, 200, {"Cache-Control": "no-cache"}, PNG)


def _add_changing(router: APIRouter, datasets: Datasets, permissions: Permissions) -> None:
    @router.patch(
        "/datasets/{name}",
        summary="Share a dataset with everybody, or keep it",
        tags=["datasets"],
        response_class=Response,
        responses={**answered(DATASET), **problem_responses(403, 404, 422)},
    )
    async def change(request: Request, name: str, change: DatasetChange) -> Response:
        caller = caller_of(request.scope)
        describe(request, shared=change.shared)
        await permissions.refresh()
        about = _found(datasets, permissions, name, caller)
        await permissions.share("dataset", name, caller, shared=change.shared)
        return Response(orjson.dumps(_body(about, permissions, caller)), media_type=JSON)

    @router.delete(
        "/datasets/{name}",
        summary="Delete a dataset that nothing uses",
        tags=["datasets"],
        status_code=204,
        responses=problem_responses(403, 404, 409),
    )
    async def delete(request: Request, name: str) -> Response:
        caller = caller_of(request.scope)
        await permissions.refresh()
        _found(datasets, permissions, name, caller)
        permissions.check_change("dataset", name, caller)
        try:
            await asyncio.to_thread(datasets.delete, name)
        except InUseError as error:
            users = ", ".join(error.users[:10])
            raise ConflictError(f"{name} is in use by {users}; wait for their end, or cancel them first") from error
        await permissions.release("dataset", name)
        return Response(status_code=204)


@asynccontextmanager
async def _workshop(datasets: Datasets) -> AsyncIterator[Path]:
    """A folder to make a dataset in, opened and cleared in a thread: to delete gigabytes takes a while.

    Raises FullError where the disk is full.
    """
    workshop = datasets.scratch_folder()
    try:
        folder = await asyncio.to_thread(workshop.__enter__)
        try:
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(workshop.__exit__, None, None, None))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise FullError(_NO_ROOM) from error


def _body(about: dict[str, Any], permissions: Permissions, caller: Caller) -> dict[str, Any]:
    here = f"{PATH}/{about['name']}"
    owner = permissions.describe("dataset", about["name"], caller)
    return {**about, **owner, "links": {"self": here, "preview": f"{here}/preview"}}


def _wrong(field: str, detail: str) -> InvalidError:
    return InvalidError(f"{field}: {detail}", errors=[{"field": field, "detail": detail}])


def _invalid(error: ValidationError) -> InvalidError:
    wrong = field_errors(error.errors(include_input=False))
    return InvalidError("; ".join(f"{one['field']}: {one['detail']}" for one in wrong), errors=wrong)


def _asked(fields: dict[str, str]) -> Asked:
    try:
        return Asked.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from error


async def _small(request: Request) -> bytes:
    """A body of JSON, which the limit of this route's files is not meant for."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_JSON:
            raise TooLargeError(f"a JSON body here has at most {_LARGEST_JSON} bytes")
    return body


def _named(body: bytes) -> Named:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f'the body is not JSON ({error}); send for example {{"source": "mnist"}}') from error
    try:
        return Named.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from error


def _added(datasets: Datasets, made: Path, name: str, said: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    try:
        return datasets.add(made, name, said)
    except NameTakenError as error:
        raise ConflictError(
            f"there is a dataset {name} with other content; use another name, or delete that one first"
        ) from error


# --- child processes ---


async def _fetch(request: Request, folder: Path, named: Named, settings: Settings) -> None:
    """FOLDER/file with a set known by name; the models know where it is to be had."""
    file, data = str(folder / "file"), str(settings.data.resolve())
    words = ["models", "dataset", named.source, file, "--data-folder", data, "--parent", str(os.getpid())]
    try:
        code, _, told = await _run(request, words, settings.conversion_timeout_s)
    except TimeoutError as error:
        raise _wrong("source", _too_slow("fetching it", settings)) from error
    if code:
        lines = told.decode("utf-8", "replace").strip().splitlines() or [f"its process ended with {code}"]
        log.warning("named set not to be had", extra={"set": named.source, "reason": lines[-1][:500]})
        ours = lines[-1].startswith("error: ")
        why = lines[-1].removeprefix("error: ")[:500] if ours else "it cannot be fetched here; upload its files"
        raise _wrong("source", why)


async def _convert(request: Request, folder: Path, wish: ConversionOptions, settings: Settings) -> dict[str, Any]:
    """What the converter made of FOLDER/file. Raises the ProblemError that it reported."""
    words = ["core.datasets.convert", str(folder), json.dumps(asdict(wish)), str(os.getpid())]
    try:
        code, answer, told = await _run(request, words, settings.conversion_timeout_s)
    except TimeoutError as error:
        log.warning("conversion took too long", extra={"limit_s": settings.conversion_timeout_s})
        raise _wrong("file", _too_slow("reading it", settings)) from error
    if code < 0:  # a decoder crashed, or the system's memory ran out
        raise _wrong("file", f"reading it took its process down (signal {-code}); save it anew, or send it in parts")
    if code:
        raise RuntimeError(f"the converter failed: {told.decode('utf-8', 'replace')[-4000:]}")
    said: dict[str, Any] = orjson.loads(answer)
    if "problem" in said:
        raise _problem(**said["problem"])
    return said


def _problem(status: int, field: str, detail: str) -> ProblemError:
    if status == FullError.status:
        return FullError(_NO_ROOM)
    errors = [{"field": field, "detail": detail}]
    return (TooLargeError if status == TooLargeError.status else InvalidError)(detail, errors=errors)


def _too_slow(what: str, settings: Settings) -> str:
    limit = f"{settings.conversion_timeout_s:g} s (REVERIE_CONVERSION_TIMEOUT_S)"
    return f"{what} took longer than the limit of {limit}; send it in parts, or as an NPZ or IDX of uint8"


async def _run(request: Request, words: list[str], timeout_s: float) -> tuple[int, bytes, bytes]:
    """Run `python -m WORDS` for as long as the client is there; its exit code, stdout and stderr.

    Raises ClientDisconnect where the client leaves, and TimeoutError after `timeout_s`; then the process is killed.
    """
    until = time.monotonic() + timeout_s
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    talk = asyncio.ensure_future(child.communicate())
    try:
        while True:  # asked first, too: the server reads on only when asked, and so hears of an end a look later
            if await request.is_disconnected():
                raise ClientDisconnect
            if talk.done():
                break
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            await asyncio.wait((talk,), timeout=min(_LOOK_S, left))
    finally:
        if child.returncode is None and not talk.done():
            child.kill()
            await talk
    out, told = talk.result()
    return child.returncode or 0, out, told
