"""OpenAI's file routes, for datasets: the id of a file is the name of a dataset."""

import asyncio
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from api.dependencies import CurrentCaller, State
from api.errors import NotFoundError
from api.openai_errors import PREFIX
from api.openapi import BINARY, openai_responses, upload
from api.responses.render import NPZ, JsonRoute
from api.routes.datasets import delete_dataset, find_dataset, store_upload
from api.routes.openai.models import unix_time
from api.routes.openai.parameters import following
from api.schemas.openai import OpenAIDeleted, OpenAIFile, OpenAIFileForm, OpenAIFileList

router = APIRouter(prefix=f"{PREFIX}/files", tags=["openai"], route_class=JsonRoute)

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
_SPLITS = ("train", "validation", "test")
_CHUNK_BYTES = 1 << 20


@router.post(
    "",
    summary="Upload a dataset",
    responses=openai_responses(400, 403, 408, 409, 413, 415, 429, 507),
    openapi_extra=upload(OpenAIFileForm),
)
async def create_openai_file(request: Request, state: State, caller: CurrentCaller) -> OpenAIFile:
    """Convert an uploaded file to a dataset, and return it when it is converted."""
    about, _ = await store_upload(request, state, caller, OpenAIFileForm, keep_filename=True)
    return _openai_file(about)


@router.get("", summary="List datasets", responses=openai_responses(400))
async def list_openai_files(
    state: State,
    caller: CurrentCaller,
    purpose: Purpose | None = None,
    after: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> OpenAIFileList:
    """Return a page of the datasets that the caller may use, sorted by the time of their creation."""
    await state.permissions.refresh()
    datasets = await asyncio.to_thread(
        lambda: state.datasets.listing(
            limit=1_000_000, visible=lambda name: state.permissions.can_use("dataset", name, caller)
        )
    )
    # by the exact time of creation: `created_at` of a file has whole seconds
    datasets = sorted(datasets, key=lambda about: (about["created_at"], about["name"]), reverse=order == "desc")
    files = [_openai_file(about) for about in datasets] if purpose in {None, "fine-tune"} else []
    return OpenAIFileList.of(following(files, after), "id", limit)


@router.get("/{file_id}", summary="A dataset", responses=openai_responses(404))
async def get_openai_file(state: State, caller: CurrentCaller, file_id: str) -> OpenAIFile:
    """Return the description of a dataset."""
    return _openai_file(await find_dataset(state, caller, file_id))


@router.get(
    "/{file_id}/content",
    summary="A dataset's arrays",
    response_class=Response,
    responses={200: {"description": "An NPZ", "content": {NPZ: BINARY}}, **openai_responses(404, 503)},
)
async def get_openai_file_content(state: State, caller: CurrentCaller, file_id: str) -> Response:
    """Return the splits of a dataset as an NPZ, which can be uploaded again."""
    about = await find_dataset(state, caller, file_id)
    chunks = _npz_chunks(partial(state.datasets.file, file_id), [about["counts"][split] for split in _SPLITS])
    try:
        first = await asyncio.to_thread(next, chunks)  # all files are on this host before the response starts
    except FileNotFoundError as error:
        raise NotFoundError(f"the dataset {file_id} was deleted meanwhile") from error
    name = f'attachment; filename="{file_id}.npz"'
    return StreamingResponse(
        chain([first], chunks), 200, {"Content-Disposition": name, "Cache-Control": "no-store"}, NPZ
    )


@router.delete("/{file_id}", summary="Delete a dataset", responses=openai_responses(403, 404, 409))
async def delete_openai_file(state: State, caller: CurrentCaller, file_id: str) -> OpenAIDeleted:
    """Delete a dataset. The status is 409 if an unfinished training uses it."""
    await delete_dataset(state, caller, file_id)
    return OpenAIDeleted(id=file_id, object="file", deleted=True)


def _openai_file(about: dict[str, Any]) -> OpenAIFile:
    """Return OpenAI's file object for the description `about` of a dataset."""
    return OpenAIFile(
        id=about["name"],
        object="file",
        bytes=int(about.get("bytes", 0)),
        created_at=unix_time(about["created_at"]),
        filename=about.get("filename") or f"{about['name']}.{about['format']}",
        purpose="fine-tune",
        status="processed",
        expires_at=None,
        status_details=None,
    )


class _Buffer:
    """A writable file in memory; reading the written bytes removes them."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        """Append `data` to the buffer; return the number of its bytes."""
        self._data += data
        return len(data)

    def flush(self) -> None:
        """Do nothing; `zipfile` calls it."""

    def take(self) -> bytes:
        """Return all bytes that were written since the last call, and remove them."""
        data, self._data = bytes(self._data), bytearray()
        return data


def _npz_chunks(path_of: Callable[[str], Path], counts: Sequence[int]) -> Iterator[bytes]:
    """Yield an NPZ file with the pictures and labels of a dataset's splits, except empty splits.

    `path_of` returns the path of a file of the dataset on this host, and may download it. `counts`
    are the numbers of pictures of the splits. The files are opened before the first chunk, so that
    the download is complete even if the dataset is deleted meanwhile.
    """
    buffer = _Buffer()
    with ExitStack() as stack:
        sources: list[tuple[str, IO[bytes]]] = [
            (f"{split}.npy", stack.enter_context(path_of(f"{split}.npy").open("rb")))
            for split, count in zip(_SPLITS, counts, strict=True)
            if count
        ]
        with suppress(FileNotFoundError):
            parts = np.split(np.load(path_of("labels.npy")), np.cumsum(counts)[:-1])
            sources += [
                (f"y_{split}.npy", _npy(labels)) for split, labels in zip(_SPLITS, parts, strict=True) if len(labels)
            ]
        archive = stack.enter_context(zipfile.ZipFile(buffer, "w"))  # type: ignore[call-overload]
        for name, source in sources:
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    yield buffer.take()
        archive.close()
        yield buffer.take()


def _npy(array: np.ndarray[Any, Any]) -> IO[bytes]:
    """Return an array as an open NPY file."""
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return file
