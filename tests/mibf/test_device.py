"""Numeric precision on a device: float32 on a GPU excludes TF32, forward and backward."""

from __future__ import annotations

import torch

from mibf.device import ieee_float32


def flags() -> tuple[bool, bool, str]:
    return (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


def test_ieee_float32_excludes_tf32_of_convolutions_and_matrix_products_and_restores_it() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as NVIDIA's images do
    try:
        allowed = flags()
        with ieee_float32(torch.device("cpu")):
            assert flags() == allowed == (True, True, "high")
        with ieee_float32(torch.device("cuda")):
            assert flags() == (False, False, "highest")
        assert flags() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
