"""Fixtures of the tests of sampling: stores, and a limit on the memory of the shuffle buffer."""

from __future__ import annotations

import pytest

import pipeline.sampling.sampler
from pipeline.codes import UNLABELLED
from pipeline.store.template import CHUNK
from tests.support.memory_store import MemoryStore, scattered_labels


@pytest.fixture(scope="module")
def dense() -> MemoryStore:
    """2 x 2 windows, fully labelled, with a common, a less common and a rare class."""
    return MemoryStore(scattered_labels((2 * CHUNK, 2 * CHUNK), (0.7, 0.28, 0.02)))


@pytest.fixture(scope="module")
def uneven() -> MemoryStore:
    """Windows with unequal numbers of samples; those at the bottom and right edges are smaller."""
    labels = scattered_labels((300, 333), (0.03, 0.01, 0.001))
    labels[:CHUNK, :CHUNK] = scattered_labels((CHUNK, CHUNK), (0.6, 0.3, 0.1))
    labels[CHUNK : 2 * CHUNK, :CHUNK] = UNLABELLED
    return MemoryStore(labels)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit groups to one or two windows, so that a small scene has several groups."""
    monkeypatch.setattr(pipeline.sampling.sampler, "GROUP_BYTES", 1)
    monkeypatch.setattr(pipeline.sampling.sampler, "FEWEST_WINDOWS", 1)
    monkeypatch.setattr(pipeline.sampling.sampler, "CACHE_BYTES", 0)
