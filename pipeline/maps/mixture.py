"""Combine the members of a model to the products of a tile. Torch only.

The probabilities of a pixel are the mean of its members', weighted by their shares (`mibf.ensemble`). Where a single network
gives the mutual information between class and Monte Carlo sample, several members give that between class and member: their
disagreement, H(mean of p_m) - mean of H(p_m) (Lakshminarayanan et al., "Simple and scalable predictive uncertainty
estimation using deep ensembles", NeurIPS 2017). The KL term and the gate are means over the networks.

Legend for shapes: H, W of the tile, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mibf.inference.outputs import ProductName

#: Products that only networks have.
OF_NETWORKS: frozenset[ProductName] = frozenset({"kl", "gate"})
#: Products that a model without networks cannot provide.
NEED_NETWORKS: frozenset[str] = OF_NETWORKS | {"mutual_information"}


@dataclass
class Mixture:
    """The sums over the members that were added so far, on the device of what is added."""

    products: tuple[ProductName, ...]
    mean: Tensor | None = None  #: (K, H, W) probabilities
    entropy: Tensor | None = None  #: (H, W), mean of the members' entropies
    others: dict[ProductName, Tensor] = field(default_factory=dict)  #: sums of `OF_NETWORKS`
    weight: float = 0.0  #: sum of the networks' shares

    def add(self, probabilities: Tensor, share: float, others: Mapping[ProductName, Tensor] | None = None) -> None:
        """Add a member: its probabilities (K, H, W), NaN where none are wanted, and the products that only networks have."""
        self.mean = probabilities * share if self.mean is None else self.mean + probabilities * share
        if "mutual_information" in self.products:
            own = torch.special.entr(probabilities).sum(dim=0) * share
            self.entropy = own if self.entropy is None else self.entropy + own
        if others:
            self.weight += share
        for name, values in (others or {}).items():
            self.others[name] = values * share + self.others.get(name, 0)

    def results(self) -> dict[ProductName, Tensor]:
        """Return the products: (H, W), or (channels, H, W) for `probabilities` and `gate`; -1 or NaN where not wanted."""
        return {name: self._product(name) for name in self.products}

    def _product(self, name: ProductName) -> Tensor:
        assert self.mean is not None
        if name in OF_NETWORKS:
            return self.others[name] / self.weight
        if name == "probabilities":
            return self.mean
        if name in ("class", "second_class"):
            return self._ranked(second=name == "second_class")
        if name == "confidence":
            return self.mean.amax(dim=0)
        total: Tensor = torch.special.entr(self.mean).sum(dim=0)
        if name == "entropy":
            return total
        if name == "mutual_information":
            assert self.entropy is not None
            return (total - self.entropy).clamp_min(0)
        raise ValueError(f"a mixture has no {name}")

    def _ranked(self, *, second: bool) -> Tensor:
        """Position of the most or second most probable class, the first one on ties; -1 where there are no probabilities."""
        assert self.mean is not None
        first = self.mean.argmax(dim=0, keepdim=True)
        found = self.mean.scatter(0, first, -torch.inf).argmax(dim=0) if second else first[0]
        return found.masked_fill(torch.isnan(self.mean[0]), -1)


def needed_of_networks(products: Collection[ProductName]) -> tuple[ProductName, ...]:
    """Return the products to compute for each network of a mixture."""
    return ("probabilities", *(name for name in products if name in OF_NETWORKS))
