"""A bare FastAPI app with the model in its process: one forward pass per request, no queue, no batching."""

from fastapi import FastAPI, Response
from generator import encoded, load
from pydantic import BaseModel

generator = load()
app = FastAPI()


class Draw(BaseModel):
    """The fields that the benchmark's client sends."""

    model: str
    count: int
    seed: int


@app.post("/predict")
async def predict(draw: Draw) -> Response:
    """Run the model on the event loop: with one core per process a thread pool only adds context switches."""
    return Response(encoded(generator, [draw.seed])[0], media_type="application/json")
