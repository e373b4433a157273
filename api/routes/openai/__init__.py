"""Routes below `/openai/v1`: requests and responses of OpenAI's API, for the services of `/v1`."""

from fastapi import APIRouter

from api.routes.openai import files, fine_tuning, images, models

router = APIRouter()
for module in (models, images, files, fine_tuning):
    router.include_router(module.router)
