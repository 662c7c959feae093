"""What a report shows of observations that are images: a sheet of frames, and few numbers in place of many pixels."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional

from oper_lightning.data.frames import Frames
from oper_lightning.report.looks import canvas

ROWS = 20_000  # rows that are looked at, evenly spaced; the others count as the one before
SIDE = 8  # an image is averaged down to so many pixels to a side
AT_A_TIME = 100
EPISODES, MOMENTS = 5, 8  # of the sheet


def pictures(frames: Frames, first: Tensor) -> Tensor:
    """The newest frames of observations whose first frames have the numbers ``first`` ``[M]``: uint8 ``[M, H, W]``, or
    ``[M, H, W, c]`` of c channels.
    """
    images = frames.data[first + frames.stack - 1]
    colours_first = images.dim() == 4 and images.shape[3] > 4
    return images.permute(0, 2, 3, 1) if colours_first else images


def newest(frames: Frames, first: Tensor) -> Tensor:
    """The same in grey, float32 ``[M, H, W]``."""
    images = pictures(frames, first).float()
    return (images.mean(3) if images.dim() == 4 else images).reshape(len(first), -1, images.shape[2])


def features(frames: Frames, transitions: TensorDict) -> tuple[Tensor, Tensor]:
    """Averages of the newest frames over 8 x 8 squares.

    Returns:
        float32 ``[M, 64]`` of M rows, and for each of the N transitions which of them stands for it, int64 ``[N]``.
    """
    step = -(-len(transitions) // ROWS)
    first = transitions["first"][::step]
    small = torch.empty(len(first), SIDE * SIDE)  # in one piece, or small parts lie scattered among large gaps
    for part, kept in zip(first.split(AT_A_TIME), small.split(AT_A_TIME), strict=True):
        kept[:] = functional.adaptive_avg_pool2d(newest(frames, part)[:, None], SIDE).flatten(1)
    return small, torch.div(torch.arange(len(transitions)), step, rounding_mode="floor")


def sheet(frames: Frames, transitions: TensorDict, returns: Tensor, lengths: Tensor) -> Any:
    """Frames of some episodes, the worst above and the best below, from their beginning to their end.

    Args:
        frames: all of them.
        transitions: ``[N]``.
        returns: of the episodes, ``[E]``.
        lengths: their transitions, int64 ``[E]``.
    """
    order = torch.argsort(returns, stable=True)
    episodes = order[torch.linspace(0, len(order) - 1, min(EPISODES, len(order))).long()].tolist()
    begin = torch.cumsum(lengths, 0) - lengths
    figure, panels = canvas(MOMENTS, len(episodes), 1.4, 1.6)
    for place, panel in enumerate(panels):
        episode, moment = episodes[place // MOMENTS], place % MOMENTS
        step = round((int(lengths[episode]) - 1) * moment / (MOMENTS - 1))
        row = int(begin[episode]) + step
        first = transitions["first"][row : row + 1]
        image = pictures(frames, first)[0]
        image = image if image.shape[2:] == (3,) else newest(frames, first)[0]
        panel.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255)
        panel.set_axis_off()
        title = f"step {step:,}"
        panel.set_title(
            title if moment else f"episode {episode:,}, return {returns[episode]:.4g}\n{title}",
            loc="left",  # a long one then reaches over its neighbour's line, and not over the edge
            fontsize="x-small",
        )
    return figure
