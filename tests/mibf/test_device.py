"""Devices: float32 on a GPU excludes TF32, deterministic algorithms, and GPUs that cannot be used."""

from __future__ import annotations

import pytest
import torch

from mibf.device import check_precision, ieee_float32, missing_gpu
from mibf.errors import InputError


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


def test_deterministic_maps_choose_no_algorithm_by_its_speed_whatever_the_process_has_set() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = True, False
    try:
        with ieee_float32(torch.device("cuda"), deterministic=True):
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        with ieee_float32(torch.device("cuda")):
            assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(None, "this build of torch computes on CPUs only"), ("13.0", r"a build for CUDA 13\.0 and finds no driver for it")],
)
def test_missing_gpu_is_explained_by_build_or_driver(monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(InputError, match=rf"fp16, which needs a GPU, and none was found \(.*{reason}.*\); use bf16"):
        check_precision(torch.device("cpu"), "fp16")
    assert missing_gpu()


@pytest.mark.parametrize(
    ("capability", "built", "is_refused"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90a", "compute_120"], True),
        ((8, 6), ["sm_75", "sm_80", "sm_90"], False),
        ((10, 0), ["sm_80", "sm_90"], True),
        ((10, 0), ["sm_80", "sm_90", "compute_90"], False),  # compiled when it starts
        ((9, 0), ["gfx942"], False),  # not NVIDIA's
        ((9, 0), [], False),
    ],
)
def test_gpu_for_which_torch_has_no_code_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], is_refused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    if is_refused:
        with pytest.raises(InputError, match=rf"V100 has the compute capability {capability[0]}\.0, .* no code; .* 8\.0"):
            check_precision(torch.device("cuda"), "float32")
    else:
        check_precision(torch.device("cuda"), "float32")
