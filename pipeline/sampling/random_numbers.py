"""Many of numpy's random generators at a time: the numbers that `numpy.random.default_rng([*key, i])` draws for many i.

A generator takes 15 microseconds to create and a few numbers are drawn from it, so that of the windows of ten thousand
scenes, with one generator each, would take a quarter of an hour. Here both steps are arithmetic on arrays: `SeedSequence`,
which hashes the key, and the PCG64 generator (O'Neill 2014; numpy keeps both streams compatible, NEP 19).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_INIT_A, _MULT_A, _INIT_B, _MULT_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_POOL, _WORD = 4, 0xFFFFFFFF
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_LOW = np.uint64(_WORD)
_HALF = np.uint64(32)


def uniform_numbers(key: Sequence[int], last: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """The first numbers in [0, 1) of many generators: `default_rng([*key, i]).random(count)` for each i of `last`.

    Args:
        key: the first parts of each generator's key.
        last: the last part of each key, (n,), below 2^32.
        count: numbers of each generator.

    Returns:
        (n, count).
    """
    with np.errstate(over="ignore"):
        high, low, increment_high, increment_low = _seeded(_words(key), last.astype(np.uint32))
        found = np.empty((len(last), count))
        for number in range(count):
            high, low = _step(high, low, increment_high, increment_low)
            found[:, number] = (_output(high, low) >> np.uint64(11)) * 2.0**-53
    return found


def _words(key: Sequence[int]) -> list[int]:
    """A key as words of 32 bits, as `SeedSequence` takes it apart."""
    words = []
    for part in key:
        words.append(part & _WORD)
        while part := part >> 32:
            words.append(part & _WORD)
    return words


def _seeded(key: list[int], last: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], ...]:
    """State and increment of the PCG64 generators, each as two halves of 64 bits."""
    entropy: list[NDArray[np.uint32]] = [np.full(1, word, np.uint32) for word in key]
    entropy.append(last)
    entropy += [np.zeros(1, np.uint32)] * (_POOL - len(entropy))
    constant = _INIT_A

    def hashed(value: NDArray[np.uint32]) -> NDArray[np.uint32]:
        nonlocal constant
        value = value ^ np.uint32(constant)
        constant = constant * _MULT_A & _WORD
        value = value * np.uint32(constant)
        return value ^ (value >> np.uint32(16))

    def mixed(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> NDArray[np.uint32]:
        value = _MIX_LEFT * one - _MIX_RIGHT * other
        return np.asarray(value ^ (value >> np.uint32(16)))

    pool = [hashed(word) for word in entropy[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in entropy[_POOL:]:
        for target in range(_POOL):
            pool[target] = mixed(pool[target], hashed(word))
    constant, states = _INIT_B, []
    for number in range(8):
        value = pool[number % _POOL] ^ np.uint32(constant)
        constant = constant * _MULT_B & _WORD
        value = value * np.uint32(constant)
        states.append((value ^ (value >> np.uint32(16))).astype(np.uint64))
    seed_high, seed_low, stream_high, stream_low = (
        np.broadcast_to(states[2 * n] | (states[2 * n + 1] << _HALF), last.shape) for n in range(4)
    )
    one = np.uint64(1)
    increment_high, increment_low = (stream_high << one) | (stream_low >> np.uint64(63)), (stream_low << one) | one
    # As pcg64_srandom: a step from state 0, the seed is added, another step.
    high, low = _add(increment_high, increment_low, seed_high, seed_low)
    return *_step(high, low, increment_high, increment_low), increment_high, increment_low


def _add(
    high: NDArray[np.uint64], low: NDArray[np.uint64], other_high: NDArray[np.uint64], other_low: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    total = low + other_low
    return high + other_high + (total < low), total


def _step(
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
    increment_high: NDArray[np.uint64],
    increment_low: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The state times the multiplier plus the increment, modulo 2^128."""
    by_high, by_low = np.uint64(_MULTIPLIER >> 64), np.uint64(_MULTIPLIER & 0xFFFFFFFFFFFFFFFF)
    # The upper half of low * by_low, from products of 32 bits.
    a, b = low >> _HALF, low & _LOW
    c, d = by_low >> _HALF, by_low & _LOW
    middle = a * d + ((b * d) >> _HALF)
    upper = a * c + (middle >> _HALF) + (((middle & _LOW) + b * c) >> _HALF)
    return _add(upper + high * by_low + low * by_high, low * by_low, increment_high, increment_low)


def _output(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Fold the state to 64 bits: XSL RR, xor of the halves rotated by the upper six bits."""
    value, turn = high ^ low, high >> np.uint64(58)
    return np.asarray((value >> turn) | (value << ((np.uint64(64) - turn) & np.uint64(63))))
