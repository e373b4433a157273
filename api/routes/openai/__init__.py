"""The routes below `/openai/v1`, which offer the service of `/v1` in the form of OpenAI's API."""

from fastapi import APIRouter

from api.routes.openai import files, fine_tuning, images, models

router = APIRouter()
for module in (models, images, files, fine_tuning):
    router.include_router(module.router)
