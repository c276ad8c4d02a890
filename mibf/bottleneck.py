"""The variational information bottleneck (the paper's IB-Fusion). Minimal: torch alone.

After Alemi et al., "Deep variational information bottleneck", ICLR 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibf.spec import HIDDEN

#: Shift under the softplus: an untrained bottleneck starts with a standard deviation near softplus(-5) = 0.007.
SHIFT = 5.0


def deviation(spread: Tensor) -> Tensor:
    """The standard deviation from the layer that learns it."""
    return F.softplus(spread - SHIFT)


class Bottleneck(nn.Module):
    """Joined features (B, 128) to a Gaussian code and the class logits of a draw from it.

    Without `draws` the code is the mean alone: there is no layer for its standard deviation, which nothing would train.
    """

    def __init__(self, classes: int, *, hidden: int = HIDDEN, draws: bool = True) -> None:
        super().__init__()
        self.hidden = nn.Linear(HIDDEN, hidden)
        self.mean = nn.Linear(hidden, HIDDEN)
        self.spread = nn.Linear(hidden, HIDDEN) if draws else None
        self.decoder = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, classes), mean (B, 128), standard deviation (B, 128), None without draws.

        In training the logits are those of one draw z = mean + std * eps; in evaluation those of the
        mean, so that a map is the same each time it is made (the released code draws there too).
        """
        hidden = F.relu(self.hidden(x))
        mean = self.mean(hidden).float()
        if self.spread is None:
            return self.decoder(mean).float(), mean, None
        std = deviation(self.spread(hidden).float())
        z = mean + std * torch.randn_like(std) if self.training else mean
        return self.decoder(z).float(), mean, std
