"""A bare FastAPI app that runs the model in its own process.

It runs one forward pass per request, without a queue or batches.
"""

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
    """Run the model on the event loop.

    With one core per process a thread pool would only add context switches.
    """
    return Response(encoded(generator, [draw.seed])[0], media_type="application/json")
