"""What the network says of a pixel beyond its class: how sure it is, of what kind its doubt is, which source decided.

Torch alone. All are functions of the bottleneck's Gaussian N(mean, std^2), the logits of its mean and the gate;
probabilities are softmax(logits / temperature), the temperature being fitted on validation pixels (Guo et al.,
"On calibration of modern neural networks", ICML 2017). Entropies and rates are in nats.

Legend for shapes: B pixels, D the bottleneck's dimensions, K draws, N sources.
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
from mibf.objective import rate
from mibf.spec import Part

ProductName = Literal["class", "second", "confidence", "probabilities", "entropy", "information", "rate", "gate", "logits"]
PRODUCT_NAMES: tuple[ProductName, ...] = get_args(ProductName)
#: What is the place of a class among the logits, rather than a measure.
RANKED = frozenset({"class", "second"})
#: What needs more of the bottleneck than the logits of its mean.
NEEDS_CODE = frozenset({"information", "rate"})


def check_products(names: Iterable[ProductName], *, without: Collection[Part] = ()) -> tuple[ProductName, ...]:
    """Products that are known, each once, of a network without some parts.

    Raises:
        InputError: names the first that is not known, or that such a network cannot give.
    """
    if isinstance(names, str):
        raise InputError(f"products are {names!r}; give a list, of {', '.join(PRODUCT_NAMES)}.")
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in PRODUCT_NAMES:
            raise InputError(f"unknown product {name!r}; there are {', '.join(PRODUCT_NAMES)}.")
        if name in NEEDS_CODE and "bottleneck" in without:
            raise InputError(
                f"product {name!r} is of the code's distribution, and this network was trained without the bottleneck: "
                "its code is a mean alone. Leave the product out, or train a network with the bottleneck."
            )
    return wanted


def standard_draws(draws: int, dimensions: int, *, seed: int) -> Tensor:
    """K draws from the standard normal, (K, D): a function of the seed alone.

    The same draws serve every pixel (common random numbers), so that a pixel's result does not depend on
    the tile it is computed in, and neighbours differ by what they are and not by their dice.
    """
    return torch.randn(draws, dimensions, generator=torch.Generator().manual_seed(seed))


def entropy(log_probabilities: Tensor) -> Tensor:
    """-sum p log p over the last axis, in nats: (..., classes) -> (...)."""
    total: Tensor = torch.special.entr(log_probabilities.exp()).sum(dim=-1)
    return total


def information(logits: Tensor) -> Tensor:
    """Mutual information between class and draw, in nats: (K, B, classes) -> (B,).

    H(mean of p_k) - mean of H(p_k), the part of the doubt that more training could remove (Houlsby et al. 2011;
    Depeweg et al., "Decomposition of uncertainty", ICML 2018). Never negative, at most log K.
    """
    each = logits.log_softmax(dim=-1)
    mean = each.exp().mean(dim=0)
    total: Tensor = torch.special.entr(mean).sum(dim=-1)
    return (total - entropy(each).mean(dim=0)).clamp_min(0)


@dataclass(frozen=True)
class Belief:
    """What was computed of B pixels, in float32."""

    logits: Tensor  #: (B, classes), of the mean
    gate: Tensor | None  #: (B, N), rows sum to one; where asked for
    mean: Tensor | None  #: (B, D), where a product in `NEEDS_CODE` was asked for
    std: Tensor | None  #: (B, D), likewise


@dataclass(frozen=True)
class Decoding:
    """How logits become products."""

    decoder: Tensor  #: (classes, D), the weight from code to logits
    noise: Tensor  #: (K, D), from `standard_draws`
    temperature: float = 1.0

    @cached_property
    def directions(self) -> Tensor:
        """What a unit of each standard deviation does to the logits in each draw: (K * classes, D)."""
        return (self.noise[:, None] * self.decoder[None]).flatten(0, 1)

    def product(self, name: ProductName, belief: Belief) -> Tensor:
        """One product of B pixels: (B,), or (B, channels) for `probabilities`, `gate` and `logits`."""
        return _MAKERS[name](self, belief)

    def log_probabilities(self, belief: Belief) -> Tensor:
        """(B, classes)."""
        return (belief.logits / self.temperature).log_softmax(dim=-1)

    def drawn_logits(self, belief: Belief) -> Tensor:
        """Logits of every draw z = mean + std * eps, (K, B, classes): the decoder is affine, so one product does."""
        assert belief.std is not None
        pixels, classes = belief.logits.shape
        shift = F.linear(belief.std, self.directions).view(pixels, len(self.noise), classes)
        return (belief.logits + shift.transpose(0, 1)) / self.temperature


def _second(_: Decoding, belief: Belief) -> Tensor:
    """The class with the largest logit but that of `class`: of equal ones the first, as `class` is."""
    first = belief.logits.argmax(dim=-1, keepdim=True)
    return belief.logits.scatter(-1, first, -torch.inf).argmax(dim=-1)


def _rate(_: Decoding, belief: Belief) -> Tensor:
    assert belief.mean is not None
    assert belief.std is not None
    return rate(belief.mean, belief.std)


def _gate(_: Decoding, belief: Belief) -> Tensor:
    assert belief.gate is not None
    return belief.gate


_MAKERS: dict[ProductName, Callable[[Decoding, Belief], Tensor]] = {
    "class": lambda _, belief: belief.logits.argmax(dim=-1),
    "second": _second,
    "confidence": lambda decoding, belief: decoding.log_probabilities(belief).amax(dim=-1).exp(),
    "probabilities": lambda decoding, belief: decoding.log_probabilities(belief).exp(),
    "entropy": lambda decoding, belief: entropy(decoding.log_probabilities(belief)),
    "information": lambda decoding, belief: information(decoding.drawn_logits(belief)),
    "rate": _rate,
    "gate": _gate,
    "logits": lambda _, belief: belief.logits,
}
