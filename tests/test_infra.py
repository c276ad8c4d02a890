"""Manifests, images, scripts and policies of infra/: valid by the schemas of what reads them, and with few rights."""

from __future__ import annotations

import configparser
import copy
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mibf import __version__

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
CRDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


MANIFESTS = {path.name: read(f"kuberay/{path.name}") for path in sorted((INFRA / "kuberay").glob("*.yaml"))}
RAY = {name: manifest for name, manifest in MANIFESTS.items() if manifest["kind"] in CRDS}
CORE = {name: manifest for name, manifest in MANIFESTS.items() if name not in RAY}
RAYJOBS = {name: manifest for name, manifest in RAY.items() if manifest["kind"] == "RayJob"}


def pin(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a manifest, itself included."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def pods(manifest: Any) -> list[dict[str, Any]]:
    return [mapping for mapping in mappings(manifest) if "containers" in mapping]


def clusters(manifest: dict[str, Any]) -> dict[str, Any]:
    """The specification of a RayCluster, or of the one that a RayJob brings."""
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


# --- Kubernetes


def closed(schema: dict[str, Any], *, top: bool = True) -> dict[str, Any]:
    """A custom resource's schema as JSON Schema in which, as `kubectl apply` has it, nothing unknown may stand."""
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
    if top:  # Kubernetes knows what stands there, whatever the schema says
        made["properties"]["metadata"] = {"type": "object"}
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


KEPT = {
    "type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "uniqueItems", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minProperties", "maxProperties",
}  # fmt: skip


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
def test_ray_resources_are_valid_by_kuberays_schemas(name: str, crds: dict[str, Any]) -> None:
    manifest = RAY[name]
    assert manifest["apiVersion"] == "ray.io/v1"
    crds[manifest["kind"]].validate(manifest)


def misspelt(path: tuple[str | int, ...], new: Any) -> dict[str, Any]:
    """The RayJob of training with the path's last key renamed to `new` or, where `new` is no text, of that value."""
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
def test_a_misspelt_ray_resource_is_refused(path: tuple[str | int, ...], new: Any, crds: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        crds["RayJob"].validate(misspelt(path, new))


@pytest.mark.parametrize("name", CORE)
def test_kubernetes_own_resources_are_valid(name: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    kubernetes_validate.validate(CORE[name], "1.32", strict=True)
    wrong = CORE[name] | {"spek": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_everything_is_in_the_namespace_and_labelled(name: str) -> None:
    metadata = MANIFESTS[name]["metadata"]
    assert metadata.get("namespace", "mibf") == "mibf"
    assert "namespace" in metadata or MANIFESTS[name]["kind"] == "Namespace"
    assert name == "secret.example.yaml" or metadata["labels"]["app.kubernetes.io/part-of"] == "mibf"


def test_the_namespace_refuses_pods_with_rights() -> None:
    labels = MANIFESTS["namespace.yaml"]["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


PODS = [
    pytest.param(pod, id=f"{name}: {pod['containers'][0]['name']}")
    for name, manifest in MANIFESTS.items()
    for pod in pods(manifest)
]


@pytest.mark.parametrize("pod", PODS)
def test_containers_are_without_rights_and_with_limits(pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 1000  # the image's
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        harmless(container["securityContext"])
        limited(container["resources"])


def harmless(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert not context.get("privileged", False)


def limited(resources: dict[str, Any]) -> None:
    for kind in ("cpu", "memory"):
        assert kind in resources["requests"]
        assert kind in resources["limits"]
    # What is not asked for and used nevertheless is what nodes run out of.
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_the_autoscaler_beside_the_head_is_without_rights_and_with_limits() -> None:
    cluster = MANIFESTS["raycluster.yaml"]["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    harmless(cluster["autoscalerOptions"]["securityContext"])
    limited(cluster["autoscalerOptions"]["resources"])


@pytest.mark.parametrize("name", RAY)
def test_clusters_ask_for_a_token_and_leave_the_head_in_peace(name: str) -> None:
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
def test_a_group_asks_for_gpus_exactly_if_its_image_can_use_them(name: str) -> None:
    for group in clusters(RAY[name])["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        asked = container["resources"]["limits"].get("nvidia.com/gpu")
        assert asked == container["resources"]["requests"].get("nvidia.com/gpu")
        assert (asked is not None) == container["image"].endswith("-cuda") == (group["groupName"] == "gpu")


def test_workers_of_the_standing_cluster_come_when_they_are_asked_for() -> None:
    groups = {group["groupName"]: group for group in MANIFESTS["raycluster.yaml"]["spec"]["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu"}
    for group in groups.values():
        assert (group["minReplicas"], group["replicas"]) == (0, 0)
        assert group["maxReplicas"] > 0


@pytest.mark.parametrize("name", RAYJOBS)
def test_a_rayjob_ends_is_tried_again_and_cleans_up(name: str) -> None:
    spec = RAYJOBS[name]["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 3600
    assert "clusterSelector" not in spec  # with it neither retries nor shutting down work


@pytest.mark.parametrize("name", RAYJOBS)
def test_the_entrypoint_and_the_workers_of_a_rayjob_find_room(name: str) -> None:
    spec = RAYJOBS[name]["spec"]
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert all(group["minReplicas"] == group["replicas"] == group["maxReplicas"] for group in groups.values())
    words = shlex.split(spec["entrypoint"])
    stage = words[1]
    if stage == "prepare":
        assert spec["entrypointNumCpus"] == cpus(groups["cpu"])
        return
    # Shared among the workers, all CPUs of the cluster make a share that a worker's pod has.
    total = sum(group["replicas"] * cpus(group) for group in groups.values())
    driver = groups.pop("driver")
    (workers,) = groups.values()
    assert f"{stage}.workers={workers['replicas']}" in words
    assert total // workers["replicas"] == cpus(workers)
    start = driver["rayStartParams"]
    assert json.loads(json.loads(start["resources"])) == json.loads(spec["entrypointResources"])


def cpus(group: dict[str, Any]) -> int:
    """The CPUs that Ray counts in a group's pod."""
    (container,) = group["template"]["spec"]["containers"]
    return int(group["rayStartParams"].get("num-cpus", container["resources"]["limits"]["cpu"]))


def test_the_nightly_rerun_is_alone_and_knows_the_clusters_token() -> None:
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


def test_the_network_is_closed_but_for_what_is_needed() -> None:
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


# --- secrets and images

SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|KEY", re.IGNORECASE)


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_secret_is_written_down(name: str) -> None:
    manifest = MANIFESTS[name]
    for mapping in mappings(manifest):
        for entry in mapping.get("env") or ():
            assert not SECRET.search(entry["name"]) or set(entry) == {"name", "valueFrom"}, entry["name"]
    if manifest["kind"] == "Secret":
        assert set(manifest["stringData"].values()) == {"REPLACE_ME"}
        assert "data" not in manifest


@pytest.mark.parametrize("path", sorted(p for p in INFRA.rglob("*") if p.is_file()), ids=lambda p: str(p.relative_to(INFRA)))
def test_no_file_holds_what_looks_like_a_key(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN|\b[0-9a-f]{32,}\b", text)
    for name, value in re.findall(r"\b(\w*(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY)\w*)=(\S*)", text):
        # A variable's content, a command's output, a path, or a hole to be filled.
        assert name.endswith("_PATH") or re.match(r"""\$|"\$|\.\.\.|$""", value), f"{name}={value}"


def images() -> Iterator[tuple[str, str]]:
    for path in sorted(INFRA.rglob("*.y*ml")):
        for document in yaml.safe_load_all(path.read_text()):
            for mapping in mappings(document):
                if isinstance(mapping.get("image"), str):
                    yield str(path.relative_to(INFRA)), mapping["image"]
    for line in (INFRA / "docker/Dockerfile").read_text().splitlines():
        if line.startswith("FROM "):
            yield "docker/Dockerfile", line.split()[1]


@pytest.mark.parametrize(("where", "image"), sorted(set(images())))
def test_images_are_named_by_a_version(where: str, image: str) -> None:
    name, _, tag = image.rpartition(":")
    assert re.match(r"v?\d+\.\d+", tag), f"{where}: {image}"
    if name.endswith("/mibf"):
        assert tag.removesuffix("-cuda") == __version__


def test_the_image_is_of_an_ordinary_user_and_holds_no_compiler() -> None:
    lines = (INFRA / "docker/Dockerfile").read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    final = "\n".join(lines[last:])
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert "\nUSER 1000:1000\n" in final
    assert 'ENTRYPOINT ["tini", "--"]' in final
    assert not re.search(r"build-essential|\bgcc\b|-dev\b|pip install", final)
    assert not re.search(r"^(ARG|ENV) .*(SECRET|TOKEN|PASSWORD)", "\n".join(lines), re.MULTILINE)


def test_the_image_is_made_of_the_packages_and_no_more() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    taken = {pattern.removeprefix("!").rstrip("/") for pattern in patterns if pattern.startswith("!")}
    assert taken == {"constraints.txt", "pyproject.toml", "LICENSE", "README.md", "jobs", "mibf", "pipeline"}
    assert all((ROOT / name).exists() for name in taken)


def program(name: str) -> str:
    """A program of the environment that the tests run in, or of the machine."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    arguments = [program("hadolint"), "--no-color", "--failure-threshold", "style", "infra/docker/Dockerfile"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# --- Ray's launcher, scripts, schedules, policies


def test_the_launchers_cluster_is_valid_by_rays_schema() -> None:
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


SCRIPTS = sorted(INFRA.rglob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_sound(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    # What somebody else started is not ours to end.
    assert not re.search(r"\b(pkill|killall|ray stop|fuser)\b", text)
    assert "0.0.0.0" not in text


#: What is advice for images alone, by hadolint's own numbers.
OF_IMAGES = ["DL3001", "DL3003", "DL4006"]


def shellcheck(text: str) -> subprocess.CompletedProcess[str]:
    """What ShellCheck, which hadolint holds, says of a script: put into an image's recipe."""
    recipe = f'FROM image:1\nSHELL ["/bin/bash", "-c"]\nRUN <<\'END_OF_SCRIPT\'\n{text}\nEND_OF_SCRIPT\n'
    ignored = [word for rule in OF_IMAGES for word in ("--ignore", rule)]
    arguments = [program("hadolint"), "--no-color", "--failure-threshold", "style", *ignored, "-"]
    return subprocess.run(arguments, input=recipe, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing_in_scripts(script: Path) -> None:
    done = shellcheck(script.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SC2086" in shellcheck(script.read_text() + "\nrm $folder\n").stdout


def test_what_is_started_on_this_machine_is_for_it_alone() -> None:
    text = (INFRA / "local/up.sh").read_text()
    for option in ("-ip.bind=127.0.0.1", '--node-ip-address="127.0.0.', '--dashboard-host="$head"', "head=127.0.0.2"):
        assert option in text
    assert "RAY_AUTH_MODE=token" in text
    assert json.loads((INFRA / "local/s3.json.example").read_text())["identities"][0]["actions"] == ["Admin"]


def test_ending_without_anything_started_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "MIBF_LOCAL": str(tmp_path)}
    done = subprocess.run([str(INFRA / "local/down.sh")], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_only_what_was_started_is_ended(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"])
    try:
        started = subprocess.run(["ps", "-o", "lstart=", "-p", str(sleeper.pid)], capture_output=True, text=True, check=True)
        (tmp_path / "store.pid").write_text(f"{sleeper.pid} {started.stdout}")
        # A number that another process has got since.
        (tmp_path / "ray-head.pid").write_text(f"{other.pid} Thu Jan  1 00:00:00 1970\n")
        environment = {**os.environ, "MIBF_LOCAL": str(tmp_path)}
        process = subprocess.Popen([str(INFRA / "local/down.sh")], env=environment, stdout=subprocess.PIPE, text=True)
        assert sleeper.wait(timeout=30) == -15
        told, _ = process.communicate(timeout=60)
        assert told == "ended store\n"
        assert other.poll() is None
        assert not list(tmp_path.glob("*.pid"))
    finally:
        for process in (sleeper, other):
            process.kill()
            process.wait()


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((INFRA / "schedule" / name).read_text())
    return parser


def test_the_service_takes_its_credentials_from_a_file_and_has_no_rights() -> None:
    service = unit("mibf-rerun.service")["Service"]
    assert service["Type"] == "oneshot"
    assert service["User"] != "root"
    assert service["EnvironmentFile"] == "/etc/mibf/rerun.env"
    assert service["NoNewPrivileges"] == "true"
    assert service["ProtectSystem"] == "strict"
    assert service["ExecStart"].startswith("/opt/mibf/bin/mibf rerun --all s3://")
    assert not SECRET.search(service["Environment"])


def test_the_timer_starts_the_service_each_day_and_makes_up_for_days_missed() -> None:
    timer = unit("mibf-rerun.timer")
    assert timer["Timer"]["OnCalendar"] == "*-*-* 05:15:00"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert "Unit" not in timer["Timer"]  # the service of the same name


def test_cron_does_what_the_timer_does() -> None:
    lines = (INFRA / "schedule/crontab").read_text().splitlines()
    (line,) = (line for line in lines if re.match(r"[\d*]", line))
    minute, hour, *days = line.split()[:5]
    assert (minute, hour, days) == ("15", "5", ["*", "*", "*"])
    service = unit("mibf-rerun.service")["Service"]
    assert line.endswith(service["ExecStart"])
    assert service["EnvironmentFile"] in line
    assert "flock" in line
    assert "%" not in line  # cron would end the line there


def test_the_policy_allows_what_is_done_and_where() -> None:
    statements = {
        statement["Sid"]: statement for statement in json.loads((INFRA / "s3/policy.json").read_text())["Statement"]
    }

    def actions(statement: dict[str, Any]) -> set[str]:
        listed = statement["Action"]
        return {listed} if isinstance(listed, str) else set(listed)

    for statement in statements.values():
        assert statement["Effect"] == "Allow"
        assert not {"NotAction", "NotResource", "Principal"} & set(statement)
        assert not any("*" in action for action in actions(statement))
        bucket, _, prefix = statement["Resource"].removeprefix("arn:aws:s3:::").partition("/")
        assert re.fullmatch(r"[a-z0-9-]+", bucket)
        if actions(statement) == {"s3:ListBucket"}:
            assert prefix == ""
            (condition,) = statement["Condition"].values()
            assert condition == {"s3:prefix": ["valley", "valley/*"]}
        else:
            assert re.fullmatch(r"[a-z]+/\*", prefix)
    written = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}
    assert actions(statements["WorkspaceObjects"]) == written
    assert actions(statements["InputsObjects"]) == {"s3:GetObject"}
