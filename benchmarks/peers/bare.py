"""A bare FastAPI app: the model in the server's own process, one request one forward pass, no queue and no batch."""

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
    """Run the model on the event loop itself: with one core per process a thread pool only adds switches."""
    return Response(encoded(generator, [draw.seed])[0], media_type="application/json")
