"""Manifests of infra/kuberay: valid against their schemas, unprivileged, and with limits that fit on their nodes."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.manifests import CORE, CRDS, MANIFESTS, RAY, RAYJOBS, pods, read
from tests.support.paths import ROOT


def pin(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def clusters(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of a RayCluster, or of the cluster inside a RayJob."""
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def closed(schema: dict[str, Any], *, top: bool = True) -> dict[str, Any]:
    """Convert a custom resource's schema to JSON Schema that rejects unknown fields, as `kubectl apply` does."""
    made = {key: value for key, value in schema.items() if key in KEPT}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        made["properties"] = {name: closed(inner, top=False) for name, inner in schema["properties"].items()}
    if "items" in schema:
        made["items"] = closed(schema["items"], top=False)
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = closed(schema["additionalProperties"], top=False)
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if top:  # Kubernetes validates metadata itself, whatever the schema says
        made["properties"]["metadata"] = {"type": "object"}
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


KEPT = {
    "type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "uniqueItems", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minProperties", "maxProperties",
}  # fmt: skip  # a list of names: one per line would fill a page


@pytest.fixture(scope="session")
def crds(shared: Callable[[str], Path]) -> dict[str, Any]:
    folder = shared("kuberay_crds")
    validators = {}
    for kind, name in CRDS.items():
        definition = yaml.load((folder / name).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
        validators[kind] = jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))
    return validators


@pytest.mark.parametrize("name", RAY)
def test_ray_resource_is_valid_against_kuberay_schema(name: str, crds: dict[str, Any]) -> None:
    manifest = RAY[name]
    assert manifest["apiVersion"] == "ray.io/v1"
    crds[manifest["kind"]].validate(manifest)


def misspelt(path: tuple[str | int, ...], new: Any) -> dict[str, Any]:
    """Return the training RayJob with the last key of `path` renamed to `new` or, if `new` is not a string, set to it."""
    manifest = copy.deepcopy(MANIFESTS["rayjob-train.yaml"])
    *above, last = path
    place: Any = manifest
    for key in above:
        place = place[key]
    place[new if isinstance(new, str) else last] = place.pop(last) if isinstance(new, str) else new
    return manifest


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("spec", "backoffLimit"), "backofLimit"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "mod"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "minReplica"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "envFrom"), "envfrom"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams", "num-cpus"), 0),
        (("spec", "submitterPodTemplate", "spec", "securityContext", "runAsNonRoot"), ["yes"]),
        (("spec", "entrypointNumCpus"), {"cpu": 1}),
    ],
)
def test_misspelt_ray_resource_is_rejected(path: tuple[str | int, ...], new: Any, crds: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        crds["RayJob"].validate(misspelt(path, new))


@pytest.mark.parametrize("name", CORE)
def test_core_kubernetes_resource_is_valid(name: str) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="the package kubernetes-validate is not installed"
    )
    kubernetes_validate.validate(CORE[name], "1.32", strict=True)
    wrong = CORE[name] | {"spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_namespace_and_label(name: str) -> None:
    metadata = MANIFESTS[name]["metadata"]
    assert metadata.get("namespace", "mibf") == "mibf"
    assert "namespace" in metadata or MANIFESTS[name]["kind"] == "Namespace"
    assert name == "secret.example.yaml" or metadata["labels"]["app.kubernetes.io/part-of"] == "mibf"


def test_namespace_enforces_restricted_pod_security() -> None:
    labels = MANIFESTS["namespace.yaml"]["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


PODS = [
    pytest.param(pod, id=f"{name}: {pod['containers'][0]['name']}")
    for name, manifest in MANIFESTS.items()
    for pod in pods(manifest)
]


@pytest.mark.parametrize("pod", PODS)
def test_containers_are_unprivileged_and_have_limits(pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 1000  # the user of the image
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        check_unprivileged(container["securityContext"])
        check_limits(container["resources"])


def check_unprivileged(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context.get("privileged", False)


def check_limits(resources: dict[str, Any]) -> None:
    for kind in ("cpu", "memory"):
        assert kind in resources["requests"]
        assert kind in resources["limits"]
    # Memory used beyond the request is what makes a node run out of memory.
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_autoscaler_sidecar_is_unprivileged_and_has_limits() -> None:
    cluster = MANIFESTS["raycluster.yaml"]["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    check_unprivileged(cluster["autoscalerOptions"]["securityContext"])
    check_limits(cluster["autoscalerOptions"]["resources"])


@pytest.mark.parametrize("name", RAY)
def test_cluster_requires_a_token_and_head_runs_no_tasks(name: str) -> None:
    cluster = clusters(RAY[name])
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == pin("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods([cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]):
        (container,) = pod["containers"]
        assert {"containerPort": 8080, "name": "metrics"} in container["ports"]
        assert {"name": "MIBF_LOG", "value": "json"} in container["env"]
        assert container["envFrom"] == [{"secretRef": {"name": MANIFESTS["secret.example.yaml"]["metadata"]["name"]}}]


@pytest.mark.parametrize("name", RAY)
def test_worker_group_requests_gpus_only_with_a_cuda_image(name: str) -> None:
    for group in clusters(RAY[name])["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        assert gpus == container["resources"]["requests"].get("nvidia.com/gpu")
        assert (gpus is not None) == container["image"].endswith("-cuda") == (group["groupName"] == "gpu")


def test_permanent_cluster_starts_with_zero_workers_and_scales_up() -> None:
    groups = {group["groupName"]: group for group in MANIFESTS["raycluster.yaml"]["spec"]["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0


@pytest.mark.parametrize("name", RAYJOBS)
def test_rayjob_has_deadline_retries_and_cleanup(name: str) -> None:
    spec = RAYJOBS[name]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 3600
    assert "clusterSelector" not in spec  # retries and shutdown do not work with it


@pytest.mark.parametrize("name", RAYJOBS)
def test_rayjob_driver_and_workers_fit_on_its_pods(name: str) -> None:
    spec = RAYJOBS[name]["spec"]
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert all(group["minReplicas"] == group["replicas"] == group["maxReplicas"] for group in groups.values())
    words = shlex.split(spec["entrypoint"])
    stage = words[1]
    if stage == "prepare":
        assert spec["entrypointNumCpus"] == cpus(groups["cpu"])
        return
    # Dividing all CPUs of the cluster among the workers gives the CPUs of one worker pod.
    total = sum(group["replicas"] * cpus(group) for group in groups.values())
    driver = groups.pop("driver")
    (workers,) = groups.values()
    assert f"{stage}.workers={workers['replicas']}" in words
    assert total // workers["replicas"] == cpus(workers)
    start = driver["rayStartParams"]
    assert json.loads(json.loads(start["resources"])) == json.loads(spec["entrypointResources"])


def cpus(group: dict[str, Any]) -> int:
    """Return the number of CPUs that Ray counts in a group's pod."""
    (container,) = group["template"]["spec"]["containers"]
    return int(group["rayStartParams"].get("num-cpus", container["resources"]["limits"]["cpu"]))


def test_nightly_rerun_forbids_concurrency_and_reads_the_token() -> None:
    spec = MANIFESTS["cronjob-rerun.yaml"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] > 0
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 3600
    (pod,) = pods(spec)
    (container,) = pod["containers"]
    cluster = MANIFESTS["raycluster.yaml"]["metadata"]["name"]
    assert f"--address=http://{cluster}-head-svc:8265" in container["args"]
    (token,) = (entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": cluster, "key": "auth_token"}}
    (alert,) = (a for a in read("prometheus/alerts.yaml")["groups"][0]["rules"] if a["alert"] == "MibfRerunFailed")
    assert f'job_name=~"{MANIFESTS["cronjob-rerun.yaml"]["metadata"]["name"]}-.*"' in alert["expr"]


def test_network_policy_denies_by_default() -> None:
    spec = MANIFESTS["networkpolicy.yaml"]["spec"]
    assert spec["podSelector"] == {}
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    for rule in spec["ingress"]:
        assert rule["from"]
        assert rule["from"] == [{"podSelector": {}}] or rule["ports"]
    for rule in spec["egress"]:
        assert rule["to"]
        for target in rule["to"]:
            assert "ipBlock" not in target or "169.254.169.254/32" in target["ipBlock"]["except"]
