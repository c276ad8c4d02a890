"""The position hash: the published sequence of SplitMix64, no collisions, and no dependence on the window."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.grid import Window
from pipeline.scenes.split import pixel_keys
from pipeline.scenes.splitmix64 import GOLDEN, mix

#: First values of the generator seeded with 1234567, as in java.util.SplittableRandom and the C code of S. Vigna.
SEED, SEQUENCE = 1234567, (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)


def test_values_equal_those_of_the_published_generator() -> None:
    states = np.uint64(SEED) + GOLDEN * np.arange(1, len(SEQUENCE) + 1, dtype=np.uint64)
    assert mix(states).tolist() == list(SEQUENCE)


def test_different_values_have_different_hashes() -> None:
    values = np.concatenate([np.arange(50_000), np.arange(50_000) << 40]).astype(np.uint64)
    assert len(np.unique(mix(values))) == len(np.unique(values))


@pytest.mark.parametrize("bit", [0, 1, 31, 63])
def test_flipping_any_bit_changes_about_half_of_the_hash(bit: int) -> None:
    values = mix(np.arange(1, 4001, dtype=np.uint64))
    changed = mix(values) ^ mix(values ^ (np.uint64(1) << np.uint64(bit)))
    share = np.unpackbits(changed.view(np.uint8)).mean()
    assert abs(share - 0.5) < 0.01


@pytest.mark.parametrize("part", [Window(0, 0, 1, 1), Window(3, 5, 7, 2), Window(0, 19, 20, 1)])
def test_pixel_keys_do_not_depend_on_the_window(part: Window) -> None:
    whole = pixel_keys(Window(0, 0, 20, 20), columns=20, seed=1, scene=2)
    assert np.array_equal(pixel_keys(part, columns=20, seed=1, scene=2), whole[part.slices])
    assert len(np.unique(whole)) == whole.size


@pytest.mark.parametrize(("seed", "scene"), [(2, 2), (1, 3)])
def test_pixel_keys_depend_on_seed_and_scene(seed: int, scene: int) -> None:
    window = Window(0, 0, 8, 8)
    one, other = pixel_keys(window, columns=8, seed=1, scene=2), pixel_keys(window, columns=8, seed=seed, scene=scene)
    assert not np.intersect1d(one, other).size
