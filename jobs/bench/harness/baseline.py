"""Baseline for the training benchmarks: a plain training loop like that of the authors' released code.

Reimplemented from the paper: patches are cut one by one from arrays in memory, the network consists of torch's own
operations in torch's default layout, Adam updates one weight tensor at a time, and each step waits for its loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mibf.device import ieee_float32
from mibf.network.branch import SqueezeExcite
from mibf.network.mibfnet import MIBFNet, Output
from mibf.network.noise_adaptation import SHARE, NoiseAdaptation
from mibf.network.relation import Relation, gate_weights
from mibf.network.spec import FEATURES, NetworkSpec
from mibf.normalization import Scaling
from mibf.training.loss import objective
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore, scaled_window
from pipeline.store.template import CHUNK

#: Samples per batch, in the loader and the training steps; the paper's value.
PLAIN_BATCH = 64
#: Side in pixels of the part of a store that is held in memory.
SLAB = 8 * CHUNK


class Patches(Dataset[tuple[list[Tensor], int]]):
    """Map-style dataset that cuts patches with their labels one by one, for torch's `DataLoader`.

    `sources` are (row, column, band), including the patch halo; `pixels` are (sample, 2) rows and columns without the halo.
    """

    def __init__(
        self,
        sources: Sequence[NDArray[np.float32]],
        scales: Sequence[int],
        patch: int,
        pixels: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> None:
        self.sources, self.scales, self.patch, self.pixels, self.labels = sources, scales, patch, pixels, labels

    @classmethod
    def of_stores(cls, stores: Sequence[PatchStore], scaling: Scaling, patch: int) -> Patches:
        """Return the normalized training samples of the first `SLAB` x `SLAB` pixels that contain any."""
        store, first = next((store, found[0][0]) for store in stores if (found := store.windows_with_samples("train")))
        slab = Window(first.y, first.x, min(SLAB, store.shape[0] - first.y), min(SLAB, store.shape[1] - first.x))
        windows = scaled_window(store, slab, scaling, halo=patch // 2)
        labels = store.samples(slab)["train"]
        pixels = np.argwhere(labels != UNLABELLED)
        positions = np.zeros(256, np.int64)  # class id to position in `classes`
        positions[[c.id for c in store.classes]] = range(len(store.classes))
        return cls(
            [np.ascontiguousarray(values.transpose(1, 2, 0)) for values in windows],
            [source.scale for source in store.sources if source.name in scaling],
            patch,
            pixels,
            positions[labels[tuple(pixels.T)]],
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        y, x = (int(n) for n in self.pixels[index])
        p = self.patch
        cut = [v[y * s : (y + p) * s, x * s : (x + p) * s] for v, s in zip(self.sources, self.scales, strict=True)]
        return [torch.from_numpy(patch.transpose(2, 0, 1).copy()) for patch in cut], int(self.labels[index])


class PlainNetwork(MIBFNet):
    """The same function of the same weights without the operations rewritten for speed; noise as in the released code."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec)
        for module in self.modules():
            if type(module) in _PLAIN:
                module.__class__ = _PLAIN[type(module)]

    def forward(self, sources: Sequence[Tensor]) -> Output:
        """Classify patches."""
        features = [branch(x) for branch, x in zip(self.branches, sources, strict=True)]
        if "noise" not in self.spec.without:
            features = self.noise(features)
        related, gate = self._relate(features)
        if self.training:
            self.noise.observe(gate)
        refined = [refine(x) for refine, x in zip(self.refine, features, strict=True)]
        joined = self.join(torch.cat([refined[0], *related, *refined[1:]], dim=1))
        logits, mean, std = self.bottleneck(self._add_centre(F.adaptive_avg_pool2d(joined, 1).flatten(1), sources))
        return Output(logits, mean, std, gate)


class _SqueezeExcite(SqueezeExcite):
    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.weigh(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return x * weights[:, :, None, None]


class _NoiseAdaptation(NoiseAdaptation):
    """Noise adaptation that samples the source on the host and adds unit noise to rows sampled with replacement."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        disturbed = list(features)
        if self.training:
            (chosen,) = random.choices(range(len(features)), weights=self.mean_gate.tolist())
            noise = torch.zeros_like(features[chosen])
            rows = torch.randint(len(noise), (round(SHARE * len(noise)),), device=noise.device)
            noise[rows] = torch.randn_like(noise[rows])
            disturbed[chosen] = features[chosen] + noise
        return disturbed


class _Relation(Relation):
    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        batch, _, q, _ = features[0].shape
        logits = self.gate(torch.cat(list(features), dim=1)).view(batch, self.sources - 1, FEATURES, q, q)
        gates = gate_weights(logits, dim=1)
        gated = [feature * gate for feature, gate in zip(features, gates, strict=True)]
        products = torch.cat([torch.matmul(gated[i], gated[j]) for i, j in self.pairs], dim=1)
        return self.join(products), torch.stack([gate.mean(dim=(1, 2, 3)) for gate in gates], dim=1)


_PLAIN: dict[type, type] = {SqueezeExcite: _SqueezeExcite, NoiseAdaptation: _NoiseAdaptation, Relation: _Relation}


class PlainSteps:
    """Plain float32 training steps: unfused Adam, and each step waits for its loss."""

    def __init__(self, network: MIBFNet, device: torch.device, *, beta: float = 1e-4) -> None:
        self.network, self.device, self.beta = network.to(device).train(), device, beta
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4, fused=False)

    def step(self, sources: Sequence[Tensor], labels: Tensor) -> float:
        """Run one optimizer step on a batch and return its loss."""
        with ieee_float32(self.device):  # the precision of the training it is compared with
            output = self.network([x.to(self.device) for x in sources])
            loss = objective(output, labels.to(self.device), beta=self.beta)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss.total)
        self.optimizer.step()
        return loss.total.item()
