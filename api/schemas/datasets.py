"""Bodies of datasets."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.errors import InvalidError
from core.datasets.readers.source import ConversionOptions
from core.datasets.store import NAME
from core.settings import Settings

_MAX_EDGE = 4096
_SHARED = "Whether everybody may use the dataset; by default a new one is its owner's alone."


class DatasetChange(BaseModel):
    """What is to change of a dataset."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"shared": True}})

    shared: bool = Field(description="Whether everybody may use the dataset, or its owner alone.")


class DatasetForm(BaseModel):
    """The fields beside an uploaded file."""

    model_config = ConfigDict(extra="forbid")

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
        """Return the options of the converter. Raises InvalidError."""
        size = tuple(map(int, self.resize.split("x"))) if self.resize else None
        if size is not None and not all(1 <= edge <= _MAX_EDGE for edge in size):
            detail = f"each edge must be 1 to {_MAX_EDGE} pixels, as in 64x64"
            raise InvalidError(f"resize: {detail}", errors=[{"field": "resize", "detail": detail}])
        return ConversionOptions(
            format=self.format or "",
            kind="photographs" if self.kind == "photographs" else "",
            resize=(size[0], size[1]) if size else None,
            validation=self.validation,
            test=self.test,
            unpacked_bytes=settings.max_unpacked_bytes,
            reserve_bytes=settings.min_free_disk_bytes,
        )


class NamedDatasetBody(BaseModel):
    """A dataset that is known by name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: Literal["mnist", "fashion-mnist"] = Field(description="Which; its own test split is kept.")
    name: str | None = Field(None, pattern=f"^{NAME.pattern}$", description="Of the dataset; by default the source's.")
    validation: float = Field(0.1, ge=0, le=0.5, description="Share of its training split to hold out for validation.")
    shared: bool | None = Field(None, description=_SHARED)

    def conversion(self, settings: Settings) -> ConversionOptions:
        """Return the options of the converter."""
        limits = settings.max_unpacked_bytes, settings.min_free_disk_bytes
        return ConversionOptions(validation=self.validation, unpacked_bytes=limits[0], reserve_bytes=limits[1])
