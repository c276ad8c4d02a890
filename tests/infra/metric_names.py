"""Metric names: declared by the application, exported by Ray, and read by dashboards and alerts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.paths import ROOT

INFRA = ROOT / "infra"
#: As declared with ray.util.metrics, with their labels.
COUNTERS = {
    "mibf_tiles": {"run", "scene", "state"},
    "mibf_pixels": {"run", "scene"},
    "mibf_tile_retries": {"run", "scene"},
    "mibf_samples": {"run"},
}
HISTOGRAMS = {f"mibf_tile_{part}_seconds": {"run", "scene"} for part in ("read", "compute", "write")}
GAUGES = {"mibf_loss": {"run"}, "mibf_data_wait_share": {"run"}}
#: Metrics of Ray itself and of kube-state-metrics; the scrape adds `instance` and `job`.
OTHERS = {
    "ray_node_mem_used": {"instance"},
    "ray_node_mem_total": {"instance"},
    "ray_node_gpus_utilization": {"instance"},
    "ray_running_jobs": {"instance"},
    "kube_job_status_failed": {"namespace", "job_name"},
}
STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
GROUPINGS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
MATCHERS = re.compile(r"\{([^}]*)\}")
RANGES = re.compile(r"\[[^\]]*\]")
LABEL_VALUES = re.compile(r"^label_values\((?:(.*),)?\s*(\w+)\s*\)$")
WORDS = re.compile(r"(?<![\w:.$])[A-Za-z_:][\w:]*")
OPERATORS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def exported() -> dict[str, set[str]]:
    """Return the application's series as seen in a scrape, with their labels."""
    names = {f"ray_{name}_total": labels for name, labels in COUNTERS.items()}
    names |= {f"ray_{name}": labels for name, labels in GAUGES.items()}
    for name, labels in HISTOGRAMS.items():
        names |= {f"ray_{name}_bucket": labels | {"le"}, f"ray_{name}_sum": labels, f"ray_{name}_count": labels}
    return names


def names_in(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression (or a dashboard's `label_values`) reads."""
    asked = LABEL_VALUES.match(expression.strip())
    bare = STRINGS.sub("", (asked[1] or "") if asked else expression)
    bare = RANGES.sub(" ", MATCHERS.sub(" ", GROUPINGS.sub(" ", bare)))
    functions = {found[0] for found in re.finditer(r"\b\w+(?=\s*\()", bare)}
    aggregations = {found[0] for found in re.finditer(r"\b(?:sum|avg|min|max|count|quantile)\b", bare)}
    return {word for word in WORDS.findall(bare) if word.lower() not in OPERATORS} - functions - aggregations


def labels_in(expression: str) -> set[str]:
    """Return the labels that an expression groups or selects by."""
    labels = {label.strip() for found in GROUPINGS.findall(expression) for label in found.split(",")}
    for matchers in MATCHERS.findall(STRINGS.sub('""', expression)):
        labels |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
    return labels - {""}


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression of alerts and dashboards, with its location."""
    for path in sorted((INFRA / "prometheus").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield f"{path.name}: {rule['alert']}", rule["expr"]
    for path in sorted((INFRA / "grafana").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{path.name}: ${variable['name']}", variable["query"]["query"]


def asked_for() -> set[str]:
    """Return every metric read by an alert or dashboard; a scrape of a working cluster should contain them all."""
    return {name for _, expression in expressions() for name in names_in(expression)}


def alerts() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load((INFRA / "prometheus/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]
