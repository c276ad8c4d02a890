"""Each alert fires when it should and no earlier, with the texts that it promises: Prometheus's own unit tests of rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.infra.metric_names import INFRA, alerts

RULES = INFRA / "prometheus/alerts.yaml"
pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (of Debian's package prometheus) is not installed"
)


@dataclass(frozen=True)
class Case:
    """Series of samples one minute apart, in promtool's notation, and in which minutes an alert fires.

    `quiet` are minutes in which it does not. `value` is the text that `$value` is replaced by.
    """

    alert: str
    series: dict[str, str]
    fires: tuple[int, ...] = ()
    quiet: tuple[int, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    value: str = ""


SCENE = {"run": "main", "scene": "valley"}
TILES = 'ray_mibf_tiles_total{run="main", scene="valley", state="%s", instance="%s"}'
RETRIES = 'ray_mibf_tile_retries_total{run="main", scene="valley", instance="a"}'
SAMPLES, LOSS = 'ray_mibf_samples_total{run="main"}', 'ray_mibf_loss{run="main"}'
CASES = {
    "a failed tile is the first sample of its series": Case(
        "MibfTilesFailed",
        {TILES % ("failed", "a"): "_x5 1x30", TILES % ("failed", "b"): "_x5 2x30", TILES % ("done", "a"): "0+1x40"},
        quiet=(4,),
        fires=(6, 30),
        labels=SCENE,
        value="3",
    ),
    "tiles failed, and their process has ended": Case(
        "MibfTilesFailed", {TILES % ("failed", "a"): "1x5 stale"}, fires=(5, 15), quiet=(30,), labels=SCENE, value="1"
    ),
    "tiles are done": Case("MibfTilesFailed", {TILES % ("done", "a"): "0+3x60"}, quiet=(1, 30, 60)),
    "tiles stop": Case(
        "MibfMapStands", {TILES % ("done", "a"): "0+1x20 20x90"}, quiet=(25, 55), fires=(65, 90), labels=SCENE
    ),
    "tiles stop on one of two workers": Case(
        "MibfMapStands", {TILES % ("done", "a"): "5x90", TILES % ("done", "b"): "0+1x90"}, quiet=(45, 90)
    ),
    "the map ended": Case("MibfMapStands", {TILES % ("done", "a"): "0+1x20 stale"}, quiet=(25, 65)),
    "one tile in three is retried": Case(
        "MibfTilesRetried",
        {RETRIES: "0+1x60", TILES % ("done", "a"): "0+2x60", TILES % ("failed", "a"): "0+1x60"},
        quiet=(10,),
        fires=(30, 60),
        labels=SCENE,
    ),
    "one tile in ten is retried": Case(
        "MibfTilesRetried", {RETRIES: "0+1x60", TILES % ("done", "a"): "0+10x60"}, quiet=(60,)
    ),
    "a training waits": Case(
        "MibfTrainingWaitsForData",
        {
            'ray_mibf_data_wait_share{run="main", instance="a"}': "0.5x40",
            'ray_mibf_data_wait_share{run="main", instance="b"}': "0.3x40",
        },
        quiet=(10,),
        fires=(20,),
        labels={"run": "main"},
        value="40%",
    ),
    "a training waits a little": Case(
        "MibfTrainingWaitsForData", {'ray_mibf_data_wait_share{run="main", instance="a"}': "0.2x40"}, quiet=(20, 40)
    ),
    "the loss becomes NaN": Case(
        "MibfLossLost",
        {SAMPLES: "0+256x60", LOSS: "1.5x20 stale"},
        quiet=(15, 25),
        fires=(35, 60),
        labels={"run": "main"},
    ),
    "the loss is finite": Case("MibfLossLost", {SAMPLES: "0+256x60", LOSS: "1.5-0.01x60"}, quiet=(15, 60)),
    "a node is nearly full": Case(
        "MibfNodeMemoryHigh",
        {'ray_node_mem_used{instance="a"}': "50x10 95x20", 'ray_node_mem_total{instance="a"}': "100x30"},
        quiet=(9, 13),
        fires=(20,),
        labels={"instance": "a"},
        value="95%",
    ),
    "the nightly rerun fails": Case(
        "MibfRerunFailed",
        {'kube_job_status_failed{namespace="mibf", job_name="mibf-rerun-291"}': "0x5 1x10"},
        quiet=(4,),
        fires=(7,),
        labels={"namespace": "mibf", "job_name": "mibf-rerun-291"},
    ),
    "another job fails": Case(
        "MibfRerunFailed", {'kube_job_status_failed{namespace="mibf", job_name="backup"}': "1x10"}, quiet=(7,)
    ),
}


def expected(case: Case, minute: int) -> dict[str, object]:
    """What promtool should find in a minute: no alert, or one with the rule's texts filled in."""
    found = []
    if minute in case.fires:
        (rule,) = [rule for rule in alerts() if rule["alert"] == case.alert]
        texts = {
            key: re.sub(r"{{ \$(?:labels\.(\w+)|value[^}]*) }}", lambda m: case.labels[m[1]] if m[1] else case.value, text)
            for key, text in rule["annotations"].items()
        }
        found = [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": texts}]
    return {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": found}


def promtool(*arguments: str) -> str:
    """Run promtool and return what it prints; it must succeed."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alerts_fire_when_they_should_and_no_earlier(tmp_path: Path) -> None:
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            "alert_rule_test": [expected(case, minute) for minute in sorted(case.fires + case.quiet)],
        }
        for name, case in CASES.items()
    ]
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path))


def test_every_alert_has_a_case_that_fires_and_prometheus_accepts_the_files() -> None:
    assert {case.alert for case in CASES.values() if case.fires} == {rule["alert"] for rule in alerts()}
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(RULES))
    # Debian builds it without Kubernetes, so it does not know the keys of the other file.
    promtool("check", "config", "--syntax-only", str(INFRA / "prometheus/prometheus.yml"))
