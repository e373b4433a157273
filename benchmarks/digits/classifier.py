"""The digit classifier of the scores: trained once with a fixed seed, stored beside this file.

    python benchmarks/digits/classifier.py train
        about three minutes on one core; writes classifier.safetensors
    python benchmarks/digits/classifier.py test
        accuracy on MNIST's 10 000 test digits

Two convolutions at each of three sizes, with batch normalisation; training images are shifted by up
to two pixels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from digits.labels import labelled  # noqa: E402
from models.kit import data  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402

WEIGHTS = Path(__file__).parent / "classifier.safetensors"
SEED = 20160911
EPOCHS, BATCH, RATE, SHIFT = 8, 200, 3e-3, 2


class Classifier(nn.Sequential):
    """A convolutional network from images (B, 1, 28, 28) in 0 … 1 to the logits
    of ten digits (B, 10).
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 24, 1), (24, 32, 2), (32, 48, 1), (48, 64, 2), (64, 96, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(96 * 16, 10))


def load(path: Path = WEIGHTS) -> Classifier:
    """Return the shipped classifier in evaluation mode."""
    model = Classifier()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(requires_grad=False)


@torch.inference_mode()
def probabilities(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return p(y|x) of images in 0 … 1, (N, 10) in float64."""
    model = model.to(memory_format=torch.channels_last)  # half the time on a CPU
    return torch.cat([model(part).double().softmax(dim=1) for part in images.split(100)])


def accuracy(model: Classifier, split: str = "test") -> float:
    """Return the classifier's accuracy on MNIST's test digits."""
    images, digits = labelled(split)
    return float((probabilities(model, data.grey(images)).argmax(dim=1) == digits).double().mean())


def shifted(images: torch.Tensor, rows: RowStreams) -> torch.Tensor:
    """Shift each image by a random number of pixels, at most SHIFT, horizontally and vertically."""
    wide = functional.pad(images, (SHIFT,) * 4)
    moves = (rows.uniform(2) * (2 * SHIFT + 1)).long()
    y, x = (moves[:, i, None] + torch.arange(28) for i in (0, 1))
    return wide[torch.arange(len(images))[:, None, None], 0, y[:, :, None], x[:, None, :]][:, None]


def initialised() -> Classifier:
    """Return a new classifier with weights drawn from SEED."""
    model = Classifier()
    rows = RowStreams.range(SEED, 2**62, 1)
    for stream, layer in enumerate(model):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            drawn = rows.normal(layer.weight.numel(), stream) * (2.0 / fan_in) ** 0.5
            layer.weight.data.copy_(drawn.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.data.zero_()
    return model


def train(epochs: int = EPOCHS, count: int = 60000) -> Classifier:
    """Train on the first `count` training digits. The test digits are not used."""
    images, digits = labelled("train")
    images, digits = data.grey(images[:count]), digits[:count]
    model = initialised()
    steps = epochs * -(-count // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    for epoch in range(epochs):
        total = 0.0
        for index in data.shuffled(count, SEED, epoch).split(BATCH):
            rows = RowStreams(torch.full_like(index, SEED), epoch * count + index)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(shifted(images[index], rows))
            loss = functional.cross_entropy(logits.float(), digits[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        print(f"epoch {epoch + 1}: loss {total / count:.4f}", flush=True)
    return model.eval()


def main() -> None:
    """Train and save, or test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "test"))
    torch.set_num_threads(1)
    if parser.parse_args().command == "train":
        save_file(train().state_dict(), WEIGHTS)
    print(f"accuracy on the 10 000 test digits: {accuracy(load()):.2%}; {WEIGHTS.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
