"""Plots a training's losses: one line for the training split, one for the validation split."""

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 32, 40
LINES = (("train_loss", "#2563eb", "training"), ("validation_loss", "#dc2626", "validation"))
_GRID, _INK = "#e5e7eb", "#374151"
_TICKS = 5


def curves(title: str, metrics: Sequence[dict[str, Any]]) -> bytes:
    """Return a PNG with the title `title` that plots the losses of a training over the epochs.

    `metrics` has one dictionary per epoch. If it is empty, the axes are drawn without lines.
    """
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    lines = [
        (colour, label, [(line["epoch"], line[name]) for line in metrics if _finite(line.get(name))])
        for name, colour, label in LINES
    ]
    points = [point for *_, line in lines for point in line]
    low, high = _range([value for _, value in points])
    last = max([epoch for epoch, _ in points], default=1)

    def place(epoch: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (epoch - 1) / max(1, last - 1)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    for value in _ticks(low, high):
        _, y = place(1, value)
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], _GRID)
        draw.text((LEFT - 8, y), f"{value:g}", _INK, font, anchor="rm")
    for epoch in sorted({round(1 + (last - 1) * part / _TICKS) for part in range(_TICKS + 1)}):
        draw.text((place(epoch, low)[0], HEIGHT - BOTTOM + 8), str(epoch), _INK, font, anchor="ma")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4), "epoch", _INK, font, anchor="md")
    draw.text((LEFT, 8), title, _INK, font)
    across = WIDTH - RIGHT
    for colour, label, line in reversed(lines):
        if line:
            draw.line([place(*point) for point in line], colour, 2)
            for point in line if len(line) < 40 else []:
                x, y = place(*point)
                draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], colour)
            draw.text((across, 8), label, colour, font, anchor="ra")
            across -= 16 + int(font.getlength(label))
    file = io.BytesIO()
    page.save(file, "PNG", optimize=True)
    return file.getvalue()


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the y axis: the smallest and largest value with a margin."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or max(1.0, abs(high) * 0.05)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return the multiples of a round step (1, 2 or 5 times a power of 10) from `low` to `high`.

    The step is chosen so that there are about five multiples.
    """
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
