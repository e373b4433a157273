"""Request and response bodies of datasets."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.errors import InvalidError
from api.schemas.common import URL, Page, RequestBody, Resource, add_files
from api.schemas.webhooks import WebhookBody
from core.datasets.readers.base import ConversionOptions
from core.datasets.store import NAME
from core.settings import Settings

_MAX_EDGE = 4096
_FILE, _LABELS = "IDX, gzipped or not, NPZ, or a ZIP of pictures.", "IDX of one whole number per picture."
_SHARED = "Whether everybody may use the dataset; by default a new one is its owner's alone."


class SplitCounts(Resource):
    """Number of pictures in each split."""

    train: int
    validation: int
    test: int


class DatasetLinks(Resource):
    """URL paths of a dataset."""

    self: str
    preview: str
    images: str


class DatasetResponse(Resource):
    """A dataset: the shape of its pictures, their number in each split, and how it was made."""

    name: str
    created_at: str
    kind: Literal["pictures", "vectors", "photographs"]
    channels: int
    height: int
    width: int
    counts: SplitCounts
    sha256: str = Field(description="Of train.npy, validation.npy, test.npy and labels.npy, concatenated.")
    format: str = Field(description="Of the upload.")
    split: dict[str, Any] | None = Field(None, description="By what rule, and which shares were split off.")
    labels: bool | None = None
    duplicates: dict[str, int] | None = Field(None, description="Equal pictures, equal names, and overlaps of splits.")
    bytes: int | None = Field(None, description="On the disk.")
    conversions: dict[str, int] | None = None
    source: str | None = Field(None, description="Of a dataset that was fetched: its name there, or the URL.")
    owner: str | None = Field(description="Its owner's key; null for those who may not change it.")
    shared: bool
    links: DatasetLinks


class DatasetPage(Page[DatasetResponse]):
    """A page of datasets, sorted by name."""


class DatasetImageLinks(Resource):
    """URL paths of an image."""

    image: str


class DatasetImageResponse(Resource):
    """An image of a dataset."""

    object: Literal["dataset.image"]
    index: int = Field(description="Its place in the split, from 0.")
    label: int | None = Field(None, description="Left out if the dataset has no labels.")
    links: DatasetImageLinks


class DatasetImagePage(Page[DatasetImageResponse]):
    """A page of the images of a split, in their order."""


class DatasetChange(RequestBody, json_schema_extra={"example": {"shared": True}}):
    """A change of who may use a dataset."""

    shared: bool = Field(description="Whether everybody may use the dataset, or its owner alone.")


class ConversionFields(RequestBody):
    """How an uploaded or fetched file becomes a dataset."""

    name: str = Field(pattern=f"^{NAME.pattern}$", description="Of the dataset: letters, digits, `.`, `-`, `_`.")
    format: Literal["idx", "npz", "zip"] | None = Field(None, description="Of the file; detected if left out.")
    kind: Literal["pictures", "photographs"] = Field(
        "pictures", description="`photographs`, of any size, are cut into patches of 96×96 for super-resolution."
    )
    resize: str | None = Field(
        None,
        pattern=r"^[0-9]{1,4}x[0-9]{1,4}$",
        description="HEIGHTxWIDTH: scale each picture of a ZIP until it covers that size, and crop it to the centre.",
    )
    validation: float = Field(0.1, ge=0, le=0.5, description="Share of the validation split, if the file has none.")
    test: float = Field(0.1, ge=0, le=0.5, description="Share of the test split, if the file has none.")
    shared: bool | None = Field(None, description=_SHARED)

    def conversion(self, settings: Settings) -> ConversionOptions:
        """Return these fields as options of the converter.

        Raises InvalidError if `resize` is out of range.
        """
        size = tuple(map(int, self.resize.split("x"))) if self.resize else None
        if size is not None and not all(1 <= edge <= _MAX_EDGE for edge in size):
            raise InvalidError.in_field("resize", f"each edge must be 1 to {_MAX_EDGE} pixels, as in 64x64")
        return ConversionOptions(
            format=self.format or "",
            kind="photographs" if self.kind == "photographs" else "",
            resize=(size[0], size[1]) if size else None,
            validation=self.validation,
            test=self.test,
            unpacked_bytes=settings.max_unpacked_bytes,
            reserve_bytes=settings.min_free_disk_bytes,
        )


class DatasetForm(ConversionFields, strict=False, json_schema_extra=add_files(file=_FILE, labels=_LABELS)):
    """The fields of a dataset upload, in the form or, if the file is the body, in the query."""


class NamedDatasetBody(RequestBody, json_schema_extra={"example": {"source": "mnist"}}):
    """A request to fetch a dataset that is known by name."""

    source: Literal["mnist", "fashion-mnist"] = Field(description="Which; its own test split is kept.")
    name: str | None = Field(None, pattern=f"^{NAME.pattern}$", description="Of the dataset; by default the source's.")
    validation: float = Field(0.1, ge=0, le=0.5, description="Share of its training split to hold out for validation.")
    shared: bool | None = Field(None, description=_SHARED)
    webhook: WebhookBody | None = Field(None, description="Sent when the job ends, or at other `events`.")


class DatasetUrlBody(
    ConversionFields,
    json_schema_extra={"example": {"source_url": "https://example.com/digits.zip", "name": "digits"}},
):
    """A request to fetch a dataset's file by URL."""

    source_url: Annotated[str, URL]
    webhook: WebhookBody | None = Field(None, description="Sent when the job ends, or at other `events`.")
