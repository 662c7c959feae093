"""Mean and variance of numbers that come in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from oper_lightning.nn import ranks

PRIOR = 1e-4  # observations that the first mean, 0, and variance, 1, count for


class Moments:
    """Running mean and population variance of D numbers, in float64, over all ranks (Chan et al. 1983).

    Args:
        size: number D.
        device: where they are.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.variance = torch.ones(size, dtype=torch.float64, device=device)
        self.count = torch.full((), PRIOR, dtype=torch.float64, device=device)

    def take(self, values: Tensor) -> None:
        """Takes in ``[n, D]`` of each rank."""
        values = values.double()
        more = len(values) * ranks.world_size()
        mean = ranks.sum_over_ranks(values.sum(0)) / more
        variance = ranks.sum_over_ranks((values - mean).square().sum(0)) / more
        total = self.count + more
        between = (mean - self.mean).square() * self.count * more / total
        self.variance.copy_((self.variance * self.count + variance * more + between) / total)
        self.mean.lerp_(mean, float(more) / total)
        self.count.copy_(total)

    def constant(self) -> Tensor:
        """Which of the numbers have been the same all the time, bool ``[D]``; none as long as there were none.

        What spread those have comes from the first variance and mean alone.
        """
        spread = self.variance * self.count
        return (spread <= 2 * PRIOR * (1 + self.mean.square())) & (self.count > PRIOR)
