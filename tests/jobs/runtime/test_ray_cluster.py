"""CPUs per worker on a cluster: the largest share that fits, each worker on one node, leaving room for the driver."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.config.config import ResourcesSection
from jobs.evaluate import on_ray
from jobs.runtime import ray_cluster, ray_start
from jobs.runtime.ray_cluster import check_gpu, share_cluster
from jobs.runtime.worker_resources import JOB, Node, WorkerResources, cpus_each, hide_unassigned_gpus, own_device
from mibf.errors import InputError
from tests.support.paths import ROOT

AUTO = ResourcesSection()
NODES = st.lists(st.builds(Node, st.integers(0, 12), st.integers(0, 4)), max_size=4)


def fits(nodes: list[Node], workers: int, cpus: int, *, reserved_cpus: int = 0, on_gpus: bool = False) -> bool:
    """Return whether `workers` workers of `cpus` CPUs fit on the nodes, by placing them one after the other."""
    free = [[node.cpus, node.gpus] for node in nodes]
    for _ in range(workers):
        place = next((node for node in free if node[0] >= cpus and (node[1] or not on_gpus)), None)
        if place is None:
            return False
        place[0] -= cpus
        place[1] -= on_gpus
    return sum(node[0] for node in free) >= reserved_cpus


@given(NODES, st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_cpus_per_worker_are_the_largest_share_that_fits(
    nodes: list[Node], workers: int, reserved_cpus: int, on_gpus: bool
) -> None:
    each = cpus_each(nodes, workers, reserved_cpus=reserved_cpus, on_gpus=on_gpus)
    assert each == 1 or fits(nodes, workers, each, reserved_cpus=reserved_cpus, on_gpus=on_gpus)
    assert not any(fits(nodes, workers, more, reserved_cpus=reserved_cpus, on_gpus=on_gpus) for more in range(each + 1, 14))


@given(NODES, st.integers(1, 4), st.data())
def test_workers_fit_alongside_the_driver_on_any_node(nodes: list[Node], workers: int, data: st.DataObject) -> None:
    able = [position for position, node in enumerate(nodes) if node.cpus]
    each = cpus_each(nodes, workers, driver=able)
    if each > 1:
        taken = data.draw(st.sampled_from(able))
        left = [Node(node.cpus - (position == taken), node.gpus) for position, node in enumerate(nodes)]
        assert fits(left, workers, each)


def test_workers_share_all_cpus_of_each_node() -> None:
    assert [cpus_each([Node(8)], workers) for workers in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    assert cpus_each([Node(2)], 1, driver=[0]) == 1, "otherwise the worker would wait for the driver forever"
    assert cpus_each([Node(4), Node(4)], 2) == 4
    assert cpus_each([Node(4), Node(4)], 3) == 2, "a worker cannot span nodes"


# --- what each worker gets


def simulate(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], *, job_on: int | None = None, used: float = 0, gpus_used: float = 0
) -> None:
    """Let Ray report these nodes; `job_on` is the node of this process, if it is a job's driver, `used` are CPUs in use."""
    described = [
        {"Alive": True, "NodeID": str(i), "Resources": {"CPU": float(node.cpus), "GPU": float(node.gpus)}}
        for i, node in enumerate(nodes)
    ]
    total, gpus = float(sum(node.cpus for node in nodes)), float(sum(node.gpus for node in nodes))
    context: Any = SimpleNamespace(get_node_id=lambda: str(job_on))
    monkeypatch.setattr(ray, "nodes", lambda: described)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": total, "GPU": gpus})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": total - used, "GPU": gpus - gpus_used})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.delenv(JOB, raising=False)
    if job_on is not None:
        monkeypatch.setenv(JOB, "{}")


@pytest.mark.parametrize(
    ("workers", "fewest", "gpus", "expected"),
    [
        (4, None, 4, WorkerResources(4, 2, 1)),
        (6, None, 4, WorkerResources(6, 1, 0)),
        (8, 2, 4, WorkerResources(4, 2, 1)),  # elastic: four workers with a GPU each
        (8, 6, 4, WorkerResources(8, 1, 0)),
        (2, None, 0, WorkerResources(2, 4, 0)),
        (8, 2, 0, WorkerResources(8, 1, 0)),
    ],
)
def test_gpus_are_used_if_every_required_worker_gets_one(
    monkeypatch: pytest.MonkeyPatch, workers: int, fewest: int | None, gpus: int, expected: WorkerResources
) -> None:
    simulate(monkeypatch, [Node(8, gpus)])
    assert share_cluster(AUTO, workers, fewest=fewest) == expected


@pytest.mark.parametrize(
    ("workers", "fewest", "gpus", "per_gpu", "expected"),
    [
        (4, None, 2, 2, WorkerResources(4, 2, 1, 2)),
        (3, None, 2, 2, WorkerResources(3, 2, 1, 2)),
        (5, None, 2, 2, WorkerResources(5, 1, 0)),
        (8, 2, 1, 3, WorkerResources(3, 2, 1, 3)),
        (7, None, 1, 7, WorkerResources(7, 1, 1, 7)),
    ],
)
def test_workers_share_gpus(
    monkeypatch: pytest.MonkeyPatch, workers: int, fewest: int | None, gpus: int, per_gpu: int, expected: WorkerResources
) -> None:
    simulate(monkeypatch, [Node(8, gpus)])
    assert share_cluster(ResourcesSection(workers_per_gpu=per_gpu), workers, fewest=fewest) == expected


@given(st.integers(1, 16))
def test_shares_of_a_gpu_fit_into_it_at_the_precision_of_ray(per_gpu: int) -> None:
    share = WorkerResources(per_gpu, 1, 1, per_gpu).resources["GPU"]
    parts = share * 10_000
    assert parts == pytest.approx(round(parts), abs=1e-9), "Ray refuses finer parts"
    assert per_gpu * round(parts) <= 10_000 < (per_gpu + 1) * round(parts)


def test_loss_of_a_shared_gpu_leaves_as_many_workers_as_the_others_have_room_for() -> None:
    share = WorkerResources(5, 1, 1, 2)
    left = []
    while share.workers:
        left.append((share.devices, share.workers))
        share = share.without_device()
    assert left == [(3, 5), (2, 4), (1, 2)]
    assert WorkerResources(3, 2, 0).without_device() == WorkerResources(2, 2, 0)


def test_samples_are_classified_on_the_device_that_ray_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it sees a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = ray_cluster.AssignedDevice("node", "worker", torch.device("cpu"))
    monkeypatch.setattr(on_ray, "assigned_device", lambda: here)
    monkeypatch.setattr(on_ray, "predict_part", lambda *_, device, **__: [device])
    threads = torch.get_num_threads()
    found: Any = on_ray._classify(*[None] * 6, threads)  # type: ignore[arg-type]  # only the device is looked at
    assert found == [torch.device("cpu")]


def test_numbers_in_place_of_a_choice_of_gpus_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"one for each `resources\.workers_per_gpu` of them"):
        ResourcesSection.model_validate({"gpus": 0.5})
    for number in (0, 0.5, 17):
        with pytest.raises(ValidationError, match="workers_per_gpu"):
            ResourcesSection.model_validate({"workers_per_gpu": number})


def test_workers_of_the_kubernetes_layout_get_all_cpus_of_their_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and driver have no CPUs there, as the manifest says, so the driver takes none from the workers."""
    spec = yaml.safe_load((ROOT / "infra/kuberay/rayjob-train.yaml").read_text())["spec"]
    cluster = spec["rayClusterSpec"]
    assert "entrypointNumCpus" not in spec
    nodes = [Node(int(cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]))]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = int(group["rayStartParams"].get("num-cpus", limits["cpu"]))
        nodes += [Node(cpus, int(limits.get("nvidia.com/gpu", 0)))] * group["replicas"]
    assert nodes == [Node(0), Node(0), Node(8, 1), Node(8, 1)]
    simulate(monkeypatch, nodes, job_on=1)
    assert share_cluster(AUTO, 2) == WorkerResources(2, 8, 1)


def test_driver_that_takes_a_cpu_leaves_the_others_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [Node(0), Node(8)], job_on=0, used=1)
    assert share_cluster(AUTO, 1) == WorkerResources(1, 7, 0), "the head node is reported, wherever the CPU was taken"
    simulate(monkeypatch, [Node(0), Node(8)], job_on=0, used=0)
    assert share_cluster(AUTO, 1) == WorkerResources(1, 8, 0)


def test_driver_that_holds_a_gpu_leaves_the_others_to_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    simulate(monkeypatch, [Node(8, 1), Node(8, 1)], job_on=0, used=1, gpus_used=1)
    assert share_cluster(AUTO, 1) == WorkerResources(1, 8, 1)
    assert share_cluster(AUTO, 2).gpus == 0
    simulate(monkeypatch, [Node(8, 1), Node(8, 1)], job_on=0, used=1)  # the node sets the variable
    assert share_cluster(AUTO, 2) == WorkerResources(2, 7, 1)


def test_no_gpu_is_used_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, [Node(8, 4)])
    assert share_cluster(ResourcesSection(gpus=False), 2) == WorkerResources(2, 4, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device(ResourcesSection(gpus=False)).type == "cpu"
    assert own_device(AUTO).type == "cuda"


def test_gpus_that_cannot_come_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ResourcesSection(gpus=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"which computes the stage itself .* has no GPU \(.*\); .* `--gpus 1`"):
        own_device(wanted)
    simulate(monkeypatch, [Node(8, 1)])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match=r"this machine has 1 of the 2 GPUs for 2 workers; set RAY_ADDRESS"):
        share_cluster(wanted, 2)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: {"GPU": 4, "CPU": 8})
    with pytest.raises(InputError, match=r"this cluster can have at most 4 of the 6 GPUs"):
        share_cluster(wanted, 8, fewest=6)
    shared = ResourcesSection(gpus=True, workers_per_gpu=3)
    with pytest.raises(InputError, match=r"4 of the 5 GPUs for 14 workers with resources\.workers_per_gpu 3; use fewer"):
        share_cluster(shared, 14)


@pytest.mark.parametrize(
    ("gpus", "workers", "per_gpu", "message"),
    [
        (1, 3, 2, "has 1 GPU with room for 2 workers each (resources.workers_per_gpu), too few for 3 workers"),
        (1, 3, 2, "set workers to 2, or resources.workers_per_gpu to 3, to use GPUs"),
        (2, 5, 1, "has 2 GPUs, too few for 5 workers, so all compute on CPUs; set workers to 2, or resources"),
        (1, 17, 4, "set workers to 4 to use GPUs"),  # no GPU has room for so many
    ],
)
def test_message_says_what_fits_where_gpus_have_too_little_room(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    workers: int,
    per_gpu: int,
    message: str,
) -> None:
    simulate(monkeypatch, [Node(32, gpus)])
    assert share_cluster(ResourcesSection(workers_per_gpu=per_gpu), workers).gpus == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def ask_here(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let Ray run tasks in this process; return the GPUs that they ask for."""
    asked: list[float] = []

    def remote(**options: Any) -> Any:
        asked.append(options["num_gpus"])
        return lambda function: SimpleNamespace(remote=function)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda found: found)
    return asked


def test_precision_is_checked_on_the_part_of_a_gpu_that_a_worker_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the check would wait for a whole GPU, which other runs may share for hours."""
    asked = ask_here(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla P4")
    share = WorkerResources(4, 1, 1, per_gpu=4)
    with pytest.raises(InputError, match=r"map\.precision is bf16, which Tesla P4 does not support; use fp16 or float32"):
        check_gpu("bf16", share, key="map.precision")
    check_gpu("float32", share, key="map.precision")
    check_gpu("float32", WorkerResources(4, 1, 1), key="map.precision")
    assert asked == [0.25, 0.25, 1]


def test_gpu_that_ray_counts_and_torch_does_not_find_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CUDA build without a driver, or a build for CPUs on a node with GPUs."""
    ask_here(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    check_gpu("float32", WorkerResources(1, 1, 1), key="train.precision")
    reported = capsys.readouterr().err
    assert "counts a GPU, but torch is a build for CUDA 13.0 and finds no driver for it, or no GPU, so workers" in reported
    with pytest.raises(InputError, match=r"train\.precision is fp16, which needs a GPU, .* 13\.0 and finds no driver"):
        check_gpu("fp16", WorkerResources(1, 1, 1), key="train.precision")


@pytest.mark.parametrize(("workers", "per_gpu", "parts"), [(2, 1, [1.0, 1.0]), (3, 2, [0.5, 0.5, 0.5])])
def test_parts_of_gpus_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, workers: int, per_gpu: int, parts: list[float]
) -> None:
    """A GPU of which another run holds a half has room for the other half."""
    asked: list[dict[str, float]] = []

    def group(bundles: list[dict[str, float]]) -> Any:
        asked.extend(bundles)
        return SimpleNamespace(wait=lambda timeout_seconds: True)

    simulate(monkeypatch, [Node(8, 2)])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray._private.state.state, "get_max_resources_from_cluster_config", lambda: None)
    monkeypatch.setattr(ray_start, "placement_group", group)
    monkeypatch.setattr(ray_start, "remove_placement_group", lambda _: None)
    found = share_cluster(ResourcesSection(gpus=True, workers_per_gpu=per_gpu), workers)
    assert (found.workers, found.gpu_share) == (workers, parts[0])
    assert asked == [{"CPU": 1, "GPU": part} for part in parts]


@pytest.mark.parametrize("job", [False, True])
@pytest.mark.parametrize("assigned", [None, "3"])
def test_driver_sees_only_gpus_that_were_reserved_for_it(
    monkeypatch: pytest.MonkeyPatch, job: bool, assigned: str | None
) -> None:
    for name, value in ((JOB, "{}" if job else None), ("CUDA_VISIBLE_DEVICES", assigned)):
        monkeypatch.setenv(name, value or "")  # so that it is restored
        if value is None:
            monkeypatch.delenv(name)
    hide_unassigned_gpus()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == ("" if job and assigned is None else assigned)


# --- versions on the nodes


def answer(monkeypatch: pytest.MonkeyPatch, nodes: dict[str, Any]) -> None:
    """Let nodes report these versions, by address: changes to this machine's, an exception, or None for no answer."""
    described = [
        {"Alive": True, "NodeID": f"{i:056x}", "NodeManagerAddress": address, "Resources": {"CPU": 4.0}}
        for i, address in enumerate(nodes)
    ]
    head = {"Alive": True, "NodeID": "f" * 56, "NodeManagerAddress": "head", "Resources": {}}
    asked = iter(nodes)

    class Task:
        def options(self, **_: Any) -> Task:
            return self

        def remote(self) -> str:
            return next(asked)

    def get(address: str) -> dict[str, str]:
        found = nodes[address]
        if isinstance(found, Exception):
            raise found
        return ray_cluster.library_versions() | found

    def wait(addresses: list[str], **_: Any) -> tuple[list[str], list[str]]:
        there = [address for address in addresses if nodes[address] is not None]
        return there, [address for address in addresses if address not in there]

    monkeypatch.setattr(ray, "nodes", lambda: [head, *described])
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)


def test_node_with_another_mibf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"10.0.0.1": {}, "10.0.0.2": {"mibf": "0.0.9"}})
    with pytest.raises(InputError, match=r"Ray node 10\.0\.0\.2 has mibf 0\.0\.9, and this process has .*install the same"):
        ray_cluster._check_nodes()


def test_node_that_joins_with_another_mibf_while_gpus_are_waited_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(*_: Any, **__: Any) -> None:
        answer(monkeypatch, {"10.0.0.3": {"mibf": "0.0.9"}})

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray_cluster, "await_gpus", join)
    with pytest.raises(InputError, match=r"Ray node 10\.0\.0\.3 has mibf 0\.0\.9"):
        share_cluster(ResourcesSection(gpus=True), 1)


def test_node_without_mibf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, {"10.0.0.1": ray.exceptions.RaySystemError("ModuleNotFoundError: No module named 'jobs'")})
    with pytest.raises(InputError, match=r"Ray node 10\.0\.0\.1: mibf cannot be used there .*No module named 'jobs'"):
        ray_cluster._check_nodes()


def test_nodes_with_other_libraries_are_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, {"10.0.0.1": {}, "10.0.0.2": {"gdal": "3.1.0"}, "10.0.0.3": None})
    ray_cluster._check_nodes()
    printed = capsys.readouterr().err
    assert printed.count("may compute slightly different values") == 1
    assert f"10.0.0.2 does not have this machine's GDAL {ray_cluster.library_versions()['gdal']} (but 3.1.0)" in printed
    assert "10.0.0.3 did not answer within 60 s" in printed
    assert "10.0.0.1" not in printed


def test_equal_nodes_are_accepted_silently(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer(monkeypatch, {"10.0.0.1": {}})
    ray_cluster._check_nodes()
    assert capsys.readouterr().err == ""
