"""Per-pixel outputs of the network: class, confidence, kinds of uncertainty, and the weights of the sources.

Torch only. All are functions of the bottleneck's Gaussian N(mean, std^2), the logits of its mean and the gate;
probabilities are softmax(logits / temperature), with the temperature fitted on validation pixels (Guo et al.,
"On calibration of modern neural networks", ICML 2017). The logits contain the correction to other class priors, if any
(`mibf.bundle.bundle.Bundle.network`), so the temperature never changes the class. Entropies and KL terms (product `kl`)
are in nats.

Legend for shapes: B pixels, D the bottleneck's dimensions, K Monte Carlo samples, N sources.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.errors import InputError
from mibf.network.bottleneck import kl_divergence
from mibf.network.spec import NetworkPart

ProductName = Literal[
    "class", "second_class", "confidence", "probabilities", "entropy", "mutual_information", "kl", "gate", "logits"
]
PRODUCT_NAMES: tuple[ProductName, ...] = get_args(ProductName)
#: Products that are positions of classes among the logits, not measures.
RANKED = frozenset({"class", "second_class"})
#: Products that need more of the bottleneck than the logits of its mean.
NEEDS_CODE = frozenset({"mutual_information", "kl"})


def check_products(names: Iterable[ProductName], *, without: Collection[NetworkPart] = ()) -> tuple[ProductName, ...]:
    """Check product names against a network without some parts, and return each name once.

    Raises:
        InputError: a product is unknown, or the network cannot provide it; the message names the first one.
    """
    if isinstance(names, str):
        raise InputError(f"products are {names!r}; pass a list with names from {', '.join(PRODUCT_NAMES)}.")
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in PRODUCT_NAMES:
            raise InputError(f"unknown product {name!r}; must be one of {', '.join(PRODUCT_NAMES)}.")
        if name in NEEDS_CODE and "bottleneck" in without:
            raise InputError(
                f"product {name!r} needs the code's distribution, but this network was trained without the bottleneck: "
                "its code is only a mean. Leave the product out, or train a network with the bottleneck."
            )
    return wanted


def standard_draws(draws: int, dimensions: int, *, seed: int) -> Tensor:
    """Sample K vectors from the standard normal, (K, D): a function of the seed alone.

    All pixels use the same samples (common random numbers), so a pixel's result does not depend on the tile in which it
    is computed, and neighbours differ by their data and not by their random numbers.
    """
    return torch.randn(draws, dimensions, generator=torch.Generator().manual_seed(seed))


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy -sum p log p over the last axis, in nats: (..., classes) -> (...)."""
    total: Tensor = torch.special.entr(log_probabilities.exp()).sum(dim=-1)
    return total


def information(logits: Tensor) -> Tensor:
    """Mutual information between class and Monte Carlo sample, in nats: (K, B, classes) -> (B,).

    H(mean of p_k) - mean of H(p_k), the part of the uncertainty that more training could remove (Houlsby et al. 2011;
    Depeweg et al., "Decomposition of uncertainty", ICML 2018). Never negative, at most log K.
    """
    each = logits.log_softmax(dim=-1)
    mean = each.exp().mean(dim=0)
    total: Tensor = torch.special.entr(mean).sum(dim=-1)
    return (total - entropy(each).mean(dim=0)).clamp_min(0)


@dataclass(frozen=True)
class PixelOutputs:
    """What the network computed for B pixels, in float32."""

    logits: Tensor  #: (B, classes), of the mean
    gate: Tensor | None  #: (B, N), rows sum to one; if requested
    mean: Tensor | None  #: (B, D), if a product in `NEEDS_CODE` was requested
    std: Tensor | None  #: (B, D), likewise


@dataclass(frozen=True)
class OutputDecoder:
    """Computes products from logits."""

    decoder: Tensor  #: (classes, D), weight from code to logits
    noise: Tensor  #: (K, D), from `standard_draws`
    temperature: float = 1.0

    @cached_property
    def directions(self) -> Tensor:
        """Change of the logits per unit of each standard deviation, for each sample: (K * classes, D)."""
        return (self.noise[:, None] * self.decoder[None]).flatten(0, 1)

    def product(self, name: ProductName, outputs: PixelOutputs) -> Tensor:
        """Compute one product of B pixels: (B,), or (B, channels) for `probabilities`, `gate` and `logits`."""
        return _MAKERS[name](self, outputs)

    def log_probabilities(self, outputs: PixelOutputs) -> Tensor:
        """Return the log-probabilities (B, classes)."""
        return (outputs.logits / self.temperature).log_softmax(dim=-1)

    def drawn_logits(self, outputs: PixelOutputs) -> Tensor:
        """Compute the logits of every sample z = mean + std * eps: (K, B, classes).

        The decoder is affine, so one matrix product suffices.
        """
        assert outputs.std is not None
        pixels, classes = outputs.logits.shape
        shift = F.linear(outputs.std, self.directions).view(pixels, len(self.noise), classes)
        return (outputs.logits + shift.transpose(0, 1)) / self.temperature


def _second(_: OutputDecoder, outputs: PixelOutputs) -> Tensor:
    """Return the class with the second-largest logit; the first one on ties, as for `class`."""
    first = outputs.logits.argmax(dim=-1, keepdim=True)
    return outputs.logits.scatter(-1, first, -torch.inf).argmax(dim=-1)


def _kl(_: OutputDecoder, outputs: PixelOutputs) -> Tensor:
    assert outputs.mean is not None
    assert outputs.std is not None
    return kl_divergence(outputs.mean, outputs.std)


def _gate(_: OutputDecoder, outputs: PixelOutputs) -> Tensor:
    assert outputs.gate is not None
    return outputs.gate


_MAKERS: dict[ProductName, Callable[[OutputDecoder, PixelOutputs], Tensor]] = {
    "class": lambda _, outputs: outputs.logits.argmax(dim=-1),
    "second_class": _second,
    "confidence": lambda decoder, outputs: decoder.log_probabilities(outputs).amax(dim=-1).exp(),
    "probabilities": lambda decoder, outputs: decoder.log_probabilities(outputs).exp(),
    "entropy": lambda decoder, outputs: entropy(decoder.log_probabilities(outputs)),
    "mutual_information": lambda decoder, outputs: information(decoder.drawn_logits(outputs)),
    "kl": _kl,
    "gate": _gate,
    "logits": lambda _, outputs: outputs.logits,
}
