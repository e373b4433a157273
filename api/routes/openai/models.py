"""OpenAI's model routes: lists and gets the models that have an active version."""

from datetime import datetime

from fastapi import APIRouter

from api.dependencies import CurrentCaller, State
from api.openai_errors import PREFIX
from api.openapi import openai_responses
from api.responses.render import JsonRoute
from api.routes import models
from api.schemas.models import ModelResponse
from api.schemas.openai import OpenAIModel, OpenAIModelList

router = APIRouter(prefix=f"{PREFIX}/models", tags=["openai"], route_class=JsonRoute)


@router.get("", summary="List models")
async def list_openai_models(state: State, caller: CurrentCaller) -> OpenAIModelList:
    """Return all models that the caller may use, sorted by name."""
    page = await models.list_models(state, caller)
    return OpenAIModelList(object="list", data=[_openai_model(model.name, model) for model in page.data])


@router.get("/{model}", summary="A model", responses=openai_responses(404))
async def get_openai_model(state: State, caller: CurrentCaller, model: str) -> OpenAIModel:
    """Return the model NAME or NAME@VERSION."""
    return _openai_model(model, await models.get_model(state, caller, model))


def _openai_model(ref: str, model: ModelResponse) -> OpenAIModel:
    """Return OpenAI's model object for a model; `ref` is NAME or NAME@VERSION."""
    return OpenAIModel(
        id=ref,
        object="model",
        created=unix_time(model.created_at),
        owned_by=model.owner or "reverie",
        operations=list(model.operations),
    )


def unix_time(text: str | None) -> int:
    """Return an ISO 8601 time as Unix time in seconds; 0 if `text` is None or not valid."""
    try:
        return int(datetime.fromisoformat(text or "").timestamp())
    except ValueError:
        return 0
