"""Batch norm over workers: what several of them compute is what one does on the whole batch."""

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

import mibf.batchnorm
from mibf.batchnorm import synchronised
from mibf.network import MIBFNet
from mibf.spec import PARTS
from tests.test_network import ABLATED, patches_of, spec_of
from tests.workers import two_workers

#: Rows of the first worker and of the second.
SHARES = (20, 12)


def layered() -> nn.Sequential:
    """All kinds of batch norm but the third: with and without weights, with momentum and without."""
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


def whole_batch() -> tuple[Tensor, Tensor]:
    """Inputs and what the outputs are weighed by."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(sum(SHARES), 3, 5, 5, generator=generator, dtype=torch.float64)
    # The workers' shares differ, so that the statistics of each alone are others.
    return x + torch.arange(len(x))[:, None, None, None] / 10, torch.randn(len(x), 4, generator=generator).double()


def steps(network: nn.Module, x: Tensor, weighed: Tensor) -> dict[str, Any]:
    """Two training steps' worth: outputs, gradients of inputs and parameters, and the buffers after them."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    network(x.detach().flip(1)).sum().backward()  # a first one, for running means over several
    network.zero_grad()
    output = network(x)
    (output * weighed).sum().backward()
    return {
        "output": output.detach(),
        "input": x.grad,
        "parameters": {name: p.grad for name, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
    }


def far() -> Tensor:
    """Values whose squares, summed about zero in float32, have lost their variance."""
    return 1000 + 0.1 * torch.randn(sum(SHARES), 4, 3, 3, generator=torch.Generator().manual_seed(2))


def stepped(network: MIBFNet, model: Callable[..., Any], rows: slice, scale: int) -> dict[str, Any]:
    """A step of a network that draws nothing; its loss is a sum over rows, times `scale`."""
    torch.manual_seed(3)
    sources = patches_of(network.spec, sum(SHARES))
    labels = torch.randint(0, 3, (sum(SHARES),))
    output = model([x[rows] for x in sources])
    (scale * F.cross_entropy(output.logits, labels[rows], reduction="sum")).backward()
    return {
        "output": output.logits.detach(),
        "parameters": {name: p.grad for name, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
    }


def undrawn() -> MIBFNet:
    torch.manual_seed(0)
    return MIBFNet(spec_of(patch=5, without=("noise", "bottleneck")))


def _work(rank: int) -> dict[str, Any]:
    """One of two workers, with its rows of the whole batch."""
    rows = slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], None)
    results: dict[str, Any] = {}
    calls = 0
    reduce = dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return reduce(*arguments, **named)

    dist.all_reduce = counted
    x, weighed = whole_batch()
    results["rows"] = steps(synchronised(layered()), x[rows], weighed[rows])
    results["calls"] = calls
    last = x[rows].contiguous(memory_format=torch.channels_last)
    results["channels last"] = steps(synchronised(layered()), last, weighed[rows])
    everything = slice(0, None) if rank == 0 else slice(0, 0)
    results["one without rows"] = steps(synchronised(layered()), x[everything], weighed[everything])

    norm = synchronised(nn.BatchNorm2d(4))
    results["far"] = {"output": norm(far()[rows]).detach(), "variance": norm.running_var}
    norm = synchronised(nn.BatchNorm2d(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = x[rows].bfloat16().requires_grad_()
        output = norm(half)
        output.float().pow(3).sum().backward()
    results["half"] = {"output": output.detach(), "input": half.grad, "buffers": dict(norm.named_buffers())}

    calls = 0
    evaluated = synchronised(layered()[:-1]).eval()(x[rows])  # its last layer keeps no statistics to evaluate with
    results["evaluated"] = {"output": evaluated.detach(), "calls": calls}

    network = synchronised(undrawn())
    model = DistributedDataParallel(network, broadcast_buffers=False)
    results["network"] = stepped(network, model, rows, scale=2)  # for the wrapper takes the mean over two workers
    return results


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two workers found."""
    return two_workers(_work, tmp_path_factory.mktemp("workers"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rows", "channels last", "one without rows"])
def test_two_workers_with_unequal_shares_are_one_with_the_whole_batch(workers: list[dict[str, Any]], case: str) -> None:
    one, other = (found[case] for found in workers)
    wanted = steps(layered(), *whole_batch())
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
def test_each_layer_speaks_to_the_other_workers_once_a_pass(workers: list[dict[str, Any]]) -> None:
    for found in workers:
        assert found["calls"] == 2 * 4 + 2 * 4  # two steps through four layers, forwards and backwards


@pytest.mark.slow
def test_in_evaluation_workers_do_not_speak_and_it_is_torchs_own(workers: list[dict[str, Any]]) -> None:
    wanted = layered()[:-1].eval()(whole_batch()[0])
    found = [worker["evaluated"] for worker in workers]
    torch.testing.assert_close(torch.cat([each["output"] for each in found]), wanted.detach())
    assert [each["calls"] for each in found] == [0, 0]


@pytest.mark.slow
def test_values_far_from_zero_keep_their_variance_in_float32(workers: list[dict[str, Any]]) -> None:
    norm = nn.BatchNorm2d(4).double()
    wanted = norm(far().double()).detach().float()
    found = torch.cat([worker["far"]["output"] for worker in workers])
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)  # a float32 of 1000 is exact to 3e-5, with deviation 0.1
    torch.testing.assert_close(workers[0]["far"]["variance"], norm.running_var.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_under_autocast_outputs_are_bfloat16_and_statistics_float32(workers: list[dict[str, Any]]) -> None:
    norm = nn.BatchNorm2d(3)
    half = whole_batch()[0].bfloat16().requires_grad_()
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
def test_a_networks_step_on_two_data_parallel_workers_is_that_of_one(workers: list[dict[str, Any]]) -> None:
    network = undrawn()
    wanted = stepped(network, network, slice(None), scale=1)
    one, other = (found["network"] for found in workers)
    torch.testing.assert_close(torch.cat([one["output"], other["output"]]), wanted["output"], atol=1e-4, rtol=1e-4)
    for name, gradient in wanted["parameters"].items():
        room = 1e-3 * float(gradient.abs().max()) + 1e-4
        torch.testing.assert_close(one["parameters"][name], gradient, atol=room, rtol=0, msg=name)
    for name, buffer in wanted["buffers"].items():
        if name != "noise.mean_gate":  # training averages that one
            torch.testing.assert_close(one["buffers"][name], buffer, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_with_one_worker_it_is_torchs_own(training: bool) -> None:
    x, weighed = whole_batch()
    plain, changed = layered().train(training), synchronised(layered()).train(training)
    found, wanted = steps(changed, x, weighed), steps(plain, x, weighed)
    assert torch.equal(found["output"], wanted["output"])
    assert torch.equal(found["input"], wanted["input"])
    for name, buffer in wanted["buffers"].items():
        assert torch.equal(found["buffers"][name], buffer)


@pytest.mark.parametrize("spec", [ABLATED[0], spec_of((2,), without=PARTS)])
def test_every_batch_norm_of_a_network_is_changed_and_nothing_else(spec: Any) -> None:
    network = MIBFNet(spec)
    before, parameters = dict(network.state_dict()), [id(p) for p in network.parameters()]
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert synchronised(network) is network
    assert [id(p) for p in network.parameters()] == parameters
    assert list(network.state_dict()) == list(before)
    assert all(type(layer) is mibf.batchnorm.SynchronisedBatchNorm2d for layer in layers)
    plain = MIBFNet(spec)
    plain.load_state_dict(network.state_dict())
    x = patches_of(spec, 3)
    assert torch.equal(network.eval()(x).logits, plain.eval()(x).logits)
    synchronised(network)  # twice is once
    assert all(type(layer) is mibf.batchnorm.SynchronisedBatchNorm2d for layer in layers)
    assert type(synchronised(nn.BatchNorm3d(2))) is mibf.batchnorm.SynchronisedBatchNorm3d


def test_torchs_own_refuses_processors(tmp_path: Path) -> None:
    """Why this module is there; when it no longer holds, torch's own will do."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="input tensor to be on GPU"):
            nn.SyncBatchNorm(2)(torch.rand(4, 2, 3, 3))
    finally:
        dist.destroy_process_group()
