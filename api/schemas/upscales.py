"""Fields of `POST /v1/upscales`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.fields import WHOLE
from api.requests import SEED_LIMIT


class UpscaleFields(BaseModel):
    """The fields beside the picture; any other field is taken as an option."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = Field(None, description="Name of a model, or name@version; by default the first that can.")
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT), WHOLE] | None = Field(
        None, description="0 ≤ seed < 2^63; drawn and returned if left out."
    )
    image: str | None = Field(None, description="The picture as base64 of a PNG, JPEG or WebP file.")
    format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="Of the response; by default what `Accept` says, or PNG."
    )
    quality: Annotated[int, Field(ge=1, le=100), WHOLE] = Field(92, description="Of a JPEG or WebP.")
    options: dict[str, Any] = Field({}, description="Options of the operation; the model's card has their schema.")
