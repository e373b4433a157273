"""Define the client methods for datasets."""

from pathlib import Path
from typing import Any

from reverie.methods.base import (
    IMPORT_TIMEOUT_S,
    PNG,
    BaseMethods,
    ClientMethod,
    FilePath,
    JobProgress,
    Steps,
    Webhook,
    is_url,
    media_type_of,
    webhook_body,
)
from reverie.records import Dataset, DatasetImage, SavedFile
from reverie.requests import ApiRequest, ByteProgress, Upload, path_of

# Datasets that the service fetches by name.
NAMED_DATASETS = ("mnist", "fashion-mnist")


class DatasetMethods(BaseMethods):
    """Client methods that list, upload, fetch, share and delete datasets.

    They raise NotFoundError for an unknown name.
    """

    @ClientMethod
    def datasets(self) -> Steps[list[Dataset]]:
        """Return all datasets that you may use, sorted by name."""
        return [Dataset(body) for body in (yield from self._list("/v1/datasets"))]

    @ClientMethod
    def dataset(self, name: str) -> Steps[Dataset]:
        """Return the description of a dataset."""
        return Dataset((yield from self._get("datasets", name)))

    @ClientMethod
    def upload_dataset(
        self,
        name: str,
        file: FilePath,
        labels: FilePath | None = None,
        *,
        format: str | None = None,  # noqa: A002 - the field's name in the HTTP interface
        kind: str | None = None,
        resize: str | None = None,
        validation: float | None = None,
        test: float | None = None,
        shared: bool | None = None,
        on_progress: ByteProgress | None = None,
    ) -> Steps[Dataset]:
        """Create a dataset from an IDX or NPZ file, or a ZIP of pictures; return its description.

        `labels` is an IDX file with a label for each picture. `format` is "idx", "npz" or "zip"; by
        default it is detected. `kind` is "pictures" (one image each, the default) or "photographs"
        (of any size, divided into patches). `resize` is HEIGHTxWIDTH in pixels, to which pictures
        are scaled and cropped. `validation` and `test` are the shares of these splits, from 0 to
        0.5. A new dataset is private unless `shared`. `on_progress` is called with the number of
        bytes sent.

        If a dataset of this name has the same content, it is returned. Raises InvalidError for a
        file that cannot be read, and ConflictError if a dataset of this name has other content.
        """
        files = {"file": Path(file), **({"labels": Path(labels)} if labels is not None else {})}
        params = {"name": name, "format": format, "kind": kind, "resize": resize, "shared": shared}
        shares = {"validation": validation, "test": test}
        upload = Upload(files, on_progress)
        request = ApiRequest("POST", "/v1/datasets", params=params | shares, upload=upload, timeout_s=IMPORT_TIMEOUT_S)
        return Dataset((yield from self._json(request)))

    @ClientMethod
    def fetch_dataset(
        self,
        source: str,
        name: str | None = None,
        *,
        format: str | None = None,  # noqa: A002 - the field's name in the HTTP interface
        kind: str | None = None,
        resize: str | None = None,
        validation: float | None = None,
        test: float | None = None,
        shared: bool | None = None,
        webhook: Webhook | None = None,
        on_progress: JobProgress | None = None,
    ) -> Steps[Dataset]:
        """Create a dataset that the service downloads itself; return its description.

        `source` is "mnist", "fashion-mnist" or the URL of a file. `name` is the new dataset's name,
        by default `source`; a URL needs one. For a URL, the other options are those of
        `upload_dataset`; otherwise only `validation` and `shared` can be set. The method waits for
        the job that downloads the file, and calls `on_progress` with the job. `webhook` is a URL,
        or a mapping of `url` and `events`, to which the service sends a signed request when the job
        ends. Raises JobFailedError if the job fails or is cancelled, and UnreachableError if the
        connection breaks before the response: the service may have started the job then.
        """
        fields: dict[str, Any] = {
            "source_url" if is_url(source) else "source": source,
            "name": name or None,
            "format": format,
            "kind": kind,
            "resize": resize,
            "validation": validation,
            "test": test,
            "shared": shared,
            "webhook": webhook_body(webhook) if webhook else None,
        }
        body = {field: value for field, value in fields.items() if value is not None}
        # the route takes no Idempotency-Key, so a retry could start a second job
        response = yield from self._send(ApiRequest("POST", "/v1/datasets", json=body, retry_if_lost=False))
        if response.status_code != 202:
            return Dataset(response.json())
        yield from self._wait_for_success(response, on_progress)
        return Dataset((yield from self._get("datasets", name or source)))

    @ClientMethod
    def save_dataset_preview(
        self, name: str, path: FilePath, *, split: str = "train", count: int = 64
    ) -> Steps[SavedFile]:
        """Save `count` pictures of a dataset's split as a grid in the PNG file `path`."""
        request = ApiRequest("GET", path_of("datasets", name, "preview"), params={"split": split, "count": count})
        return (yield from self._download(request, path, PNG))

    @ClientMethod
    def dataset_images(
        self, name: str, *, split: str = "train", after: int | None = None, limit: int = 100
    ) -> Steps[list[DatasetImage]]:
        """Return index and label of at most `limit` images of a split, in their order.

        The first image is the one after the index `after`. `dataset(name).counts` has the number of
        images in each split.
        """
        params = {"split": split, "after": after, "limit": limit}
        request = ApiRequest("GET", path_of("datasets", name, "images"), params=params)
        return [DatasetImage(body) for body in (yield from self._json(request))["data"]]

    @ClientMethod
    def save_dataset_images(
        self,
        name: str,
        path: FilePath,
        *,
        split: str = "train",
        after: int | None = None,
        limit: int = 100,
        columns: int | None = None,
    ) -> Steps[SavedFile]:
        """Save at most `limit` images of a split, after the one with the index `after`.

        The suffix of `path` chooses one PNG with `columns` images per line, an NPZ with `images`,
        `index` and `labels`, or a JSON list. Fewer are saved if they are large. Raises
        NotFoundError for a PNG without images, ValueError for another suffix.
        """
        params = {"split": split, "after": after, "limit": limit, "columns": columns}
        media_type = media_type_of(path)
        headers = {"Accept": media_type}
        request = ApiRequest("GET", path_of("datasets", name, "images"), params=params, headers=headers)
        return (yield from self._download(request, path, media_type))

    @ClientMethod
    def share_dataset(self, name: str, shared: bool = True) -> Steps[Dataset]:
        """Let everybody use a dataset or, with `shared=False`, only its owner.

        Returns the dataset's description.
        """
        return Dataset((yield from self._json(ApiRequest("PATCH", path_of("datasets", name), json={"shared": shared}))))

    @ClientMethod
    def delete_dataset(self, name: str) -> Steps[None]:
        """Delete a dataset.

        Raises ConflictError if an unfinished training uses it.
        """
        yield from self._delete("datasets", name)
