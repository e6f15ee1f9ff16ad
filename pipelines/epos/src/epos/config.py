"""Parameters of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from epos.errors import UsageError

# Channels at 1/4, 1/8, 1/16 and 1/32 of the image's size.
BACKBONES = {
    "small": (32, 48, 64, 64),
    "base": (48, 64, 96, 96),
    "large": (96, 160, 256, 320),
}
STRIDE = 4  # The heads work at 1/4 of the image's size, as EPOS does (`decoder_output_stride`).
ALIGN = 32  # Sides of the network's input are multiples of the coarsest stride.


@dataclass(frozen=True)
class TrainConfig:
    """What a trained model depends on, besides data and code.

    Attributes:
        backbone: key of BACKBONES.
        image_size: longer side of the network's input, px; images are scaled to it.
        num_frags: surface fragments of each object.
        weight_object, weight_fragment, weight_location: weights of the three losses.
        huber_delta: border between the square and the linear part of the Huber loss, in fragment sizes.
        train_steps: number of updates.
        batch_size: images in each update.
        learning_rate: peak of the schedule (linear warm-up, then cosine to zero).
        warmup_steps: length of the warm-up.
        weight_decay: decoupled decay of the weights for each unit of learning rate.
        seed: of weights, batches and augmentation.
    """

    backbone: str = "base"
    image_size: int = 128
    num_frags: int = 64
    weight_object: float = 1.0
    weight_fragment: float = 1.0
    weight_location: float = 100.0
    huber_delta: float = 1.0
    train_steps: int = 500
    batch_size: int = 8
    learning_rate: float = 3e-3
    warmup_steps: int = 30
    weight_decay: float = 1e-2
    seed: int = 1

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise UsageError(f"--backbone: {self.backbone!r} is none of {', '.join(BACKBONES)}")
        for name, low, high in (
            ("image_size", 32, 4096),
            ("num_frags", 1, 1024),
            ("train_steps", 0, 10_000_000),
            ("batch_size", 1, 4096),
            ("warmup_steps", 0, 1_000_000),
            ("seed", 0, 2**31 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not in {low}..{high}")
        for name in ("weight_object", "weight_fragment", "weight_location", "weight_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not a number from 0")
        for name in ("huber_delta", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not a positive number")
        if self.image_size % ALIGN:
            raise UsageError(f"--image-size: {self.image_size} is not a multiple of {ALIGN}")

    def as_dict(self) -> dict[str, Any]:
        """The parameters for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of as_dict."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})
