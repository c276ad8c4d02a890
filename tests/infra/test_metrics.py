"""Alerts and dashboards use only existing metrics and labels, and alerts name a command."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.infra.metric_names import INFRA, OTHERS, alerts, asked_for, exported, expressions, labels_in, names_in

KNOWN = exported() | OTHERS
EXPRESSIONS = list(expressions())


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (run) (rate(ray_a_total{state="failed"}[5m])) > 0', {"ray_a_total"}),
        ("sum(a) / on (run) group_left (scene) max by (b) (c:d)", {"a", "c:d"}),
        ("a unless on (run) b offset 5m or vector(1) and bool_x", {"a", "b", "bool_x"}),
        ("histogram_quantile(0.5, sum by (le) (rate(h_bucket[$__rate_interval])))", {"h_bucket"}),
        ("abs(x) == +Inf and 1e9 < y", {"x", "y"}),
        ('label_values(a{run=~"$run"}, scene)', {"a"}),
        ('label_values({job="ray"}, run)', set()),
    ],
)
def test_names_in_finds_the_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert names_in(expression) == names


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expression_uses_only_existing_metrics_and_labels(where: str, expression: str) -> None:
    assert names_in(expression) <= set(KNOWN), where
    labels = set().union(*(KNOWN[name] for name in names_in(expression)), {"job", "instance"})
    assert labels_in(expression) <= labels, where
    for opened, closed in ("()", "[]", "{}"):
        assert expression.count(opened) == expression.count(closed), where


def test_every_application_metric_is_used_by_alert_or_dashboard() -> None:
    wanted = {re.sub("_(bucket|sum|count)$", "", name) for name in exported()}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked_for()} >= wanted


def test_every_alert_is_complete_and_names_a_command() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names)) >= 6
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m")), rule["alert"]
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "`mibf " in rule["annotations"]["description"], rule["alert"]


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_prometheus_scrapes_ray_and_loads_the_alerts(name: str) -> None:
    configuration = yaml.safe_load((INFRA / "prometheus" / name).read_text())
    assert set(configuration) == {"global", "rule_files", "scrape_configs"}
    assert all((INFRA / "prometheus" / path).exists() for path in configuration["rule_files"])
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    assert "ray" in jobs  # the dashboard selects runs by this name
    for job in jobs.values():
        for rule in job["metric_relabel_configs"]:
            pattern = re.compile(rule["regex"])
            kept = [name for name in asked_for() if (pattern.fullmatch(name) is None) == (rule["action"] == "drop")]
            assert set(kept) == (set(asked_for()) if job["job_name"] == "ray" else {"kube_job_status_failed"})


def test_dashboard_panels_and_variables_are_consistent() -> None:
    dashboard = json.loads((INFRA / "grafana/mibf.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(panels)))
    assert used <= variables
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            references = [target["refId"] for target in panel["targets"]]
            assert len(references) == len(set(references)) > 0


def test_grafana_knows_every_key_of_the_dashboard() -> None:
    """Grafana's own classes read the dashboard and drop what they do not know; they add defaults."""

    def kept(ours: object, theirs: object) -> bool:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return all(key in theirs and kept(value, theirs[key]) for key, value in ours.items())
        if isinstance(ours, list) and isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(kept, ours, theirs))
        return ours == theirs

    def read(values: object) -> object:
        return json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(values)))

    plugins.register_default_plugins()
    dashboard = json.loads((INFRA / "grafana/mibf.json").read_text())
    assert kept(dashboard, read(dashboard))
    unknown = json.loads(json.dumps(dashboard).replace('"colorMode"', '"colourMode"'))
    assert not kept(unknown, read(unknown))
