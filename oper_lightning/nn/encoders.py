"""What turns observations into features: vectors stay as they are, images pass through convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oper_lightning.errors import InputError

SMALLEST = 36  # pixels to a side, below which the last convolution has no output


class Vectors(nn.Module):
    """Observations ``[..., O]`` as they are, in floating point."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.features = size
        """length of what :meth:`forward` gives"""

    def forward(self, observation: Tensor) -> Tensor:
        return observation


def unfit(shape: Sequence[int]) -> str | None:
    """Why images of a shape do not pass through the convolutions, and what to do; None if they do."""
    if len(shape) == 3 and min(shape[1:]) >= SMALLEST:
        return None
    if len(shape) == 3 and shape[-1] < SMALLEST <= min(shape[:2]):
        remedy = "np.moveaxis(images, -1, 1) puts channels first"
    else:
        remedy = "save larger ones" if len(shape) == 3 else "images[:, None] is one channel"
    needed = f"[channels, height, width] with at least {SMALLEST} x {SMALLEST} pixels are needed"
    return f"images of shape {tuple(shape)}, but {needed}; {remedy}"


class NatureCNN(nn.Module):
    """Images ``[..., C, H, W]`` of bytes to features ``[..., F]``: the convolutions of Mnih et al. 2015 (Nature 518).

    Bytes become numbers from 0 to 1 here, and not earlier, so that they take a quarter of the memory on the way.

    Args:
        shape: channels, height, width.

    Raises:
        InputError: if the images are too small.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        if (reason := unfit(shape)) is not None:
            raise InputError(f"observations: {reason}")
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 32, 8, 4), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, 2), nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, 1), nn.ReLU(inplace=True),
            nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            self.features = int(self.body(torch.zeros(1, *shape)).shape[1])
            """length of what :meth:`forward` gives"""

    def forward(self, observation: Tensor) -> Tensor:
        images = observation.reshape(-1, *observation.shape[-3:])
        features: Tensor = self.body(images.to(next(self.parameters()).dtype) / 255)
        return features.reshape(*observation.shape[:-3], self.features)


def encoder(shape: Sequence[int], pixels: bool) -> Vectors | NatureCNN:
    """The encoder for observations of a shape: convolutions for images of bytes, nothing for vectors.

    Raises:
        InputError: if neither can take them.
    """
    if pixels:
        return NatureCNN(shape)
    if len(shape) != 1:
        raise InputError(
            f"observations of shape {tuple(shape)}, but vectors, or images of bytes, are needed; save images as uint8"
        )
    return Vectors(shape[0])


def widths(hidden_sizes: Sequence[int] | None, pixels: bool) -> list[int]:
    """Widths of hidden layers above an encoder; where none were given, 512 above images and 256, 256 above vectors."""
    if hidden_sizes is not None:
        return [*hidden_sizes]
    return [512] if pixels else [256, 256]
