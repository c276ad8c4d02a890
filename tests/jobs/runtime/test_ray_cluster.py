"""CPUs per worker on a cluster: the largest share that fits, each worker on one node, leaving room for the driver."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.runtime.ray_cluster import Node, cpus_each

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
