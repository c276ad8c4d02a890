"""The configuration of Ray's cluster launcher in infra/ray."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest

from tests.support.manifests import read


def test_cluster_launcher_config_is_valid_against_ray_schema() -> None:
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler/ray-schema.json").read_text())
    cluster = read("ray/cluster.yaml")
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(cluster)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(cluster | {"hed_node_type": "head"})
    assert all(
        address.startswith("192.0.2.") for address in [cluster["provider"]["head_ip"], *cluster["provider"]["worker_ips"]]
    )
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert sum("--metrics-export-port=8080" in command for command in starts) == 2
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
