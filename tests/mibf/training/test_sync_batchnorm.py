"""Synchronised batch norm: several workers compute what one worker computes on the full batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mibf.training.sync_batchnorm
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import PARTS
from mibf.training.sync_batchnorm import synchronize
from tests.support.distributed import two_workers
from tests.support.networks import ABLATED, patches_of, spec_of

#: Number of rows of the first and of the second worker.
ROWS_PER_WORKER = (20, 12)


def sample_layers() -> nn.Sequential:
    """Return layers with 1D and 2D batch norms, with and without weights, momentum and running statistics."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, kernel_size=3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, kernel_size=1),
        nn.BatchNorm2d(5, momentum=None, eps=1e-3),
        nn.Flatten(),
        nn.BatchNorm1d(5 * 9, affine=False),  # neither weight nor bias
        nn.Linear(5 * 9, 4),
        nn.BatchNorm1d(4, track_running_stats=False),
    ).double()
    with torch.no_grad():
        network[1].weight.uniform_(0.5, 2)
        network[1].bias.normal_()
    return network


def full_batch() -> tuple[Tensor, Tensor]:
    """Return the inputs (N, 3, 5, 5) and the weights of the outputs (N, 4)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(sum(ROWS_PER_WORKER), 3, 5, 5, generator=generator, dtype=torch.float64)
    # The rows of the two workers differ, so their separate statistics differ too.
    return x + torch.arange(len(x))[:, None, None, None] / 10, torch.randn(len(x), 4, generator=generator).double()


def training_steps(network: nn.Module, x: Tensor, output_weights: Tensor) -> dict[str, Any]:
    """Run two training steps; return outputs, gradients of inputs and parameters, and the final buffers."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network(x.detach().flip(1)).sum().backward()  # a first step, so that running means cover more than one
    network.zero_grad()
    output = network(x)
    (output * output_weights).sum().backward()
    return {
        "output": output.detach(),
        "input": x.grad,
        "parameters": {name: p.grad for name, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
    }


def values_far_from_zero() -> Tensor:
    """Return values whose variance is lost when their squares are summed around zero in float32."""
    return 1000 + 0.1 * torch.randn(sum(ROWS_PER_WORKER), 4, 3, 3, generator=torch.Generator().manual_seed(2))


def network_step(network: MIBFNet, model: Callable[..., Any], rows: slice, scale: int) -> dict[str, Any]:
    """Run one step of a deterministic network; the loss is a sum over rows, multiplied by `scale`."""
    torch.manual_seed(3)
    sources = patches_of(network.spec, sum(ROWS_PER_WORKER))
    labels = torch.randint(0, 3, (sum(ROWS_PER_WORKER),))
    output = model([x[rows] for x in sources])
    (scale * F.cross_entropy(output.logits, labels[rows], reduction="sum")).backward()
    return {
        "output": output.logits.detach(),
        "parameters": {name: p.grad for name, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
    }


def deterministic_network() -> MIBFNet:
    torch.manual_seed(0)
    return MIBFNet(spec_of(patch=5, without=("noise", "bottleneck")))


def _worker(rank: int) -> dict[str, Any]:
    """Run one of two workers on its rows of the full batch."""
    rows = slice(0, ROWS_PER_WORKER[0]) if rank == 0 else slice(ROWS_PER_WORKER[0], None)
    results: dict[str, Any] = {}
    calls = 0
    reduce = dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return reduce(*arguments, **named)

    dist.all_reduce = counted
    x, output_weights = full_batch()
    results["rows"] = training_steps(synchronize(sample_layers()), x[rows], output_weights[rows])
    results["calls"] = calls
    last = x[rows].contiguous(memory_format=torch.channels_last)
    results["channels last"] = training_steps(synchronize(sample_layers()), last, output_weights[rows])
    everything = slice(0, None) if rank == 0 else slice(0, 0)
    results["one without rows"] = training_steps(synchronize(sample_layers()), x[everything], output_weights[everything])

    norm = synchronize(nn.BatchNorm2d(4))
    results["far"] = {"output": norm(values_far_from_zero()[rows]).detach(), "variance": norm.running_var}
    norm = synchronize(nn.BatchNorm2d(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x[rows].bfloat16().requires_grad_()
        output = norm(half)
        output.float().pow(3).sum().backward()
    results["half"] = {"output": output.detach(), "input": half.grad, "buffers": dict(norm.named_buffers())}

    calls = 0
    evaluated = synchronize(sample_layers()[:-1]).eval()(x[rows])  # the last layer has no running statistics
    results["evaluated"] = {"output": evaluated.detach(), "calls": calls}

    network = synchronize(deterministic_network())
    model = DistributedDataParallel(network, broadcast_buffers=False)
    results["network"] = network_step(network, model, rows, scale=2)  # DistributedDataParallel averages over two workers
    return results


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of each of the two workers."""
    return two_workers(_worker, tmp_path_factory.mktemp("workers"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rows", "channels last", "one without rows"])
def test_two_workers_with_unequal_rows_match_one_with_full_batch(workers: list[dict[str, Any]], case: str) -> None:
    one, other = (found[case] for found in workers)
    wanted = training_steps(sample_layers(), *full_batch())
    torch.testing.assert_close(torch.cat([one["output"], other["output"]]), wanted["output"])
    torch.testing.assert_close(torch.cat([one["input"], other["input"]]), wanted["input"])
    for name, gradient in wanted["parameters"].items():
        total = one["parameters"][name] + other["parameters"][name]
        torch.testing.assert_close(total, gradient, atol=1e-9, rtol=1e-9, msg=name)
    assert wanted["buffers"].keys() == one["buffers"].keys()
    for name, buffer in wanted["buffers"].items():
        torch.testing.assert_close(one["buffers"][name], buffer, msg=name)
        assert torch.equal(one["buffers"][name], other["buffers"][name]), name


@pytest.mark.slow
def test_each_layer_does_one_all_reduce_per_pass(workers: list[dict[str, Any]]) -> None:
    for found in workers:
        assert found["calls"] == 2 * 4 + 2 * 4  # two steps through four layers, forward and backward


@pytest.mark.slow
def test_evaluation_does_no_all_reduce_and_matches_torch(workers: list[dict[str, Any]]) -> None:
    wanted = sample_layers()[:-1].eval()(full_batch()[0])
    found = [worker["evaluated"] for worker in workers]
    torch.testing.assert_close(torch.cat([each["output"] for each in found]), wanted.detach())
    assert [each["calls"] for each in found] == [0, 0]


@pytest.mark.slow
def test_variance_of_values_far_from_zero_is_accurate_in_float32(workers: list[dict[str, Any]]) -> None:
    norm = nn.BatchNorm2d(4).double()
    wanted = norm(values_far_from_zero().double()).detach().float()
    found = torch.cat([worker["far"]["output"] for worker in workers])
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)  # a float32 of 1000 is exact to 3e-5, with deviation 0.1
    torch.testing.assert_close(workers[0]["far"]["variance"], norm.running_var.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_autocast_gives_bfloat16_outputs_and_float32_statistics(workers: list[dict[str, Any]]) -> None:
    norm = nn.BatchNorm2d(3)
    half = full_batch()[0].bfloat16().requires_grad_()
    output = norm(half)
    output.float().pow(3).sum().backward()
    found = [worker["half"] for worker in workers]
    joined = torch.cat([each["output"] for each in found])
    assert joined.dtype == torch.bfloat16
    torch.testing.assert_close(joined, output.detach(), atol=0.02, rtol=0.01)
    gradient = torch.cat([each["input"] for each in found])
    assert gradient.dtype == torch.bfloat16
    assert half.grad is not None
    torch.testing.assert_close(gradient, half.grad, atol=0.02 * float(half.grad.abs().max()), rtol=0)
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(found[0]["buffers"][name], buffer, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_network_step_on_two_data_parallel_workers_matches_one(workers: list[dict[str, Any]]) -> None:
    network = deterministic_network()
    wanted = network_step(network, network, slice(None), scale=1)
    one, other = (found["network"] for found in workers)
    torch.testing.assert_close(torch.cat([one["output"], other["output"]]), wanted["output"], atol=1e-4, rtol=1e-4)
    for name, gradient in wanted["parameters"].items():
        room = 1e-3 * float(gradient.abs().max()) + 1e-4
        torch.testing.assert_close(one["parameters"][name], gradient, atol=room, rtol=0, msg=name)
    for name, buffer in wanted["buffers"].items():
        if name != "noise.mean_gate":  # the training loop averages this one
            torch.testing.assert_close(one["buffers"][name], buffer, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_single_worker_matches_torch_batch_norm(training: bool) -> None:
    x, output_weights = full_batch()
    plain, changed = sample_layers().train(training), synchronize(sample_layers()).train(training)
    found, wanted = training_steps(changed, x, output_weights), training_steps(plain, x, output_weights)
    assert torch.equal(found["output"], wanted["output"])
    assert torch.equal(found["input"], wanted["input"])
    for name, buffer in wanted["buffers"].items():
        assert torch.equal(found["buffers"][name], buffer)


@pytest.mark.parametrize("spec", [ABLATED[0], spec_of((2,), without=PARTS), spec_of(centre=True)])
def test_conversion_replaces_only_batch_norms_and_is_idempotent(spec: Any) -> None:
    network = MIBFNet(spec)
    before, parameters = dict(network.state_dict()), [id(p) for p in network.parameters()]
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert synchronize(network) is network
    assert [id(p) for p in network.parameters()] == parameters
    assert list(network.state_dict()) == list(before)
    assert all(type(layer) is mibf.training.sync_batchnorm.SyncBatchNorm2d for layer in layers)
    plain = MIBFNet(spec)
    plain.load_state_dict(network.state_dict())
    x = patches_of(spec, 3)
    assert torch.equal(network.eval()(x).logits, plain.eval()(x).logits)
    synchronize(network)  # a second conversion has no effect
    assert all(type(layer) is mibf.training.sync_batchnorm.SyncBatchNorm2d for layer in layers)
    assert type(synchronize(nn.BatchNorm3d(2))) is mibf.training.sync_batchnorm.SyncBatchNorm3d


def test_torch_sync_batch_norm_refuses_cpu_input(tmp_path: Path) -> None:
    """The reason for our own module: when this test fails, torch's SyncBatchNorm can replace it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="input tensor to be on GPU"):
            nn.SyncBatchNorm(2)(torch.rand(4, 2, 3, 3))
    finally:
        dist.destroy_process_group()
