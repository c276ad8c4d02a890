"""The variational information bottleneck (the paper's IB-Fusion). Torch only.

After Alemi et al., "Deep variational information bottleneck", ICLR 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibf.network.spec import HIDDEN

#: Shift inside the softplus: an untrained bottleneck starts with a standard deviation near softplus(-5) = 0.007.
SHIFT = 5.0


def deviation(spread: Tensor) -> Tensor:
    """Compute the standard deviation from the output of the `spread` layer."""
    return F.softplus(spread - SHIFT)


class Bottleneck(nn.Module):
    """Maps joined features (B, 128) to a Gaussian code and the class logits of a sample of it.

    Without `draws` the code is only the mean: there is no layer for its standard deviation, since nothing would train it.
    """

    def __init__(self, classes: int, *, hidden: int = HIDDEN, draws: bool = True) -> None:
        super().__init__()
        self.hidden = nn.Linear(HIDDEN, hidden)
        self.mean = nn.Linear(hidden, HIDDEN)
        self.spread = nn.Linear(hidden, HIDDEN) if draws else None
        self.decoder = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits (B, classes), mean (B, 128) and standard deviation (B, 128), which is None without `draws`.

        In training the logits are those of one sample z = mean + std * eps, in evaluation those of the mean, so that
        maps are reproducible (the released code samples in evaluation too).
        """
        hidden = F.relu(self.hidden(x))
        mean = self.mean(hidden).float()
        if self.spread is None:
            return self.decoder(mean).float(), mean, None
        std = deviation(self.spread(hidden).float())
        z = mean + std * torch.randn_like(std) if self.training else mean
        return self.decoder(z).float(), mean, std


def kl_divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL term: KL(N(mean, std^2) || N(0, I)) of each row, in nats: (B, D), (B, D) -> (B,).

    0.5 * sum over D of (mean^2 + std^2 - 2 log std - 1), the closed form for diagonal Gaussians
    (Kingma & Welling 2014, appendix B).
    """
    return 0.5 * (mean.square() + std.square() - 2 * std.clamp_min(1e-12).log() - 1).sum(dim=1)
