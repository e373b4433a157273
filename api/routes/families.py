"""Families: the kinds of models that can be trained, and their options."""

import asyncio

from fastapi import APIRouter

from api.dependencies import State
from api.responses.render import JsonRoute
from api.schemas.trainings import FamilyPage, FamilyResponse
from core.catalog.families import load_families

router = APIRouter(prefix="/v1/families", tags=["trainings"], route_class=JsonRoute)


@router.get("", summary="List what can be trained, with its options")
async def list_families(state: State) -> FamilyPage:
    """Return the families with their recipes and the JSON Schemas of their options."""
    known = await asyncio.to_thread(load_families, state.settings)
    gpus = {"type": "integer", "minimum": 1, "maximum": await state.job_service.training_devices() or 1, "default": 1}
    data = [FamilyResponse(name=name, **family.model_dump(), gpus=gpus) for name, family in sorted(known.items())]
    return FamilyPage.of(data, "name")
