"""Copies between host and device: on a CPU, arrays and tensors share memory. `tests/gpu` has the checks on a GPU."""

from __future__ import annotations

import numpy as np
import torch

from mibf.transfer import DeviceCopies, pinned, to_host


def test_nothing_is_copied_on_a_cpu() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with DeviceCopies(torch.device("cpu")).made() as copying:
        copy = copying.copy(values)
    copying.wait()
    (back,) = to_host([copy])
    assert np.shares_memory(back.numpy(), values)


def test_pinned_arrays_have_the_shape_and_can_be_written() -> None:
    array = pinned((2, 3, 4))
    array[...] = 7
    assert (array.shape, array.dtype) == ((2, 3, 4), np.float32)
