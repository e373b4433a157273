"""Images of datasets: a page of a split as a list, a PNG sheet or an NPZ, and single images."""

import asyncio
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from api.auth import Caller
from api.dependencies import CurrentCaller, State, check_cursor
from api.errors import NotFoundError
from api.openapi import BINARY, PICTURE, UNCHANGED, bytes_response, problem_responses
from api.responses.render import JSON, NPZ, PNG, JsonRoute, choose, json_response, not_modified
from api.routes.datasets import PATH, Split, find_dataset
from api.schemas.datasets import DatasetImagePage, DatasetImageResponse
from api.state import AppState
from core.datasets.store import ImagePage
from core.imaging.pictures import grid, png

router = APIRouter(prefix=f"{PATH}/{{name}}/images", tags=["datasets"], route_class=JsonRoute)

_MAX_LIMIT = 1000


@router.get(
    "",
    summary="Images of a split, page by page",
    response_model=DatasetImagePage,
    responses={
        200: {"description": "A list with links; a sheet as PNG; or NPZ", "content": {PNG: BINARY, NPZ: BINARY}},
        **UNCHANGED,
        **problem_responses(404, 406, 422),
    },
)
async def list_dataset_images(
    request: Request,
    state: State,
    caller: CurrentCaller,
    name: str,
    split: Split = "train",
    after: Annotated[
        int | None, Query(ge=0, lt=1 << 62, description="Index of the last image of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = 100,
    columns: Annotated[
        int | None, Query(ge=1, le=_MAX_LIMIT, description="Of a PNG; by default it is about square.")
    ] = None,
) -> Response:
    """Return at most `limit` images of a split, in their order, after the one with the index
    `after`.

    Fewer are returned if they are large. `Accept` chooses a list with links, one PNG with these
    images line by line, or an NPZ with `images`, `index` and, if there are any, `labels`. If there
    are no images, a PNG has the status 404.
    """
    media = choose(request.headers.get("accept", ""), [JSON, PNG, NPZ])
    first = 0 if after is None else after + 1
    tag = f"{split}-{first}-{limit}-{columns if media == PNG else ''}-{media.rpartition('/')[2]}"
    about, headers = await _about_and_headers(state, caller, name, tag)
    if (unchanged := not_modified(request, headers)) is not None:
        return unchanged
    page = await _read(state, name, split, first, limit)
    check_cursor(None if after is None else str(after), known=first <= page.total)
    if media == JSON:
        return json_response(_list(name, split, page, limit), headers)
    if media == NPZ:
        return Response(await asyncio.to_thread(_npz, page), 200, headers, NPZ)
    if not len(page.pixels):
        raise NotFoundError(f"the dataset {name} has no more images in its {split} split")
    columns = columns or (1 if about["height"] == 1 else None)
    return Response(await asyncio.to_thread(grid, page.pixels, columns), 200, headers, PNG)


@router.get("/{index}", summary="An image of a split", **bytes_response({**PICTURE, **UNCHANGED}, 404, 422))
async def get_dataset_image(
    request: Request,
    state: State,
    caller: CurrentCaller,
    name: str,
    index: Annotated[int, Path(ge=0, lt=1 << 62)],
    split: Split = "train",
) -> Response:
    """Return the image at an index of a split, a PNG. The status is 404 if there is no such image."""
    _, headers = await _about_and_headers(state, caller, name, f"{split}-{index}")
    if (unchanged := not_modified(request, headers)) is not None:
        return unchanged
    page = await _read(state, name, split, index, 1)
    if not len(page.pixels):
        raise NotFoundError(f"the {split} split of the dataset {name} has {page.total} images, from index 0 on")
    return Response(png(page.pixels[0]), 200, headers, PNG)


async def _about_and_headers(
    state: AppState, caller: Caller, name: str, part: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the description of a dataset, and the headers for a response with a part of the
    dataset.

    `part` names this part in the entity tag. Raises NotFoundError if the caller may not use the
    dataset.
    """
    about = await find_dataset(state, caller, name)
    # a dataset never changes, but another one may get its name
    headers = {"ETag": f'"{about["sha256"][:16]}-{part}"', "Cache-Control": "private, no-cache", "Vary": "Accept"}
    return about, headers


async def _read(state: AppState, name: str, split: Split, first: int, count: int) -> ImagePage:
    """Return at most `count` images of a split from index `first` on.

    Raises NotFoundError if the dataset was deleted.
    """
    page = await asyncio.to_thread(state.datasets.images, name, split, first, count)
    if page is None:
        raise NotFoundError(f"the dataset {name} was deleted")
    return page


def _list(name: str, split: Split, page: ImagePage, limit: int) -> DatasetImagePage:
    """Return the list of the images of a page."""
    images = []
    for number in range(len(page.pixels)):
        index = page.first + number
        label = {} if page.labels is None else {"label": int(page.labels[number])}
        links = {"image": f"{PATH}/{name}/images/{index}?split={split}"}
        fields = {"object": "dataset.image", "index": index, **label, "links": links}
        images.append(DatasetImageResponse.model_validate(fields))
    listed = DatasetImagePage.of(images, "index", limit)
    listed.has_more = page.first + len(images) < page.total
    return listed


def _npz(page: ImagePage) -> bytes:
    """Return the images of a page as an NPZ file."""
    arrays = {"images": page.pixels, "index": np.arange(page.first, page.first + len(page.pixels))}
    if page.labels is not None:
        arrays["labels"] = page.labels
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()
