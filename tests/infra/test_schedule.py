"""The nightly rerun of infra/schedule: the systemd units and the crontab that matches them."""

from __future__ import annotations

import configparser
import re

from tests.support.manifests import INFRA, SECRET


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string((INFRA / "schedule" / name).read_text())
    return parser


def test_systemd_service_reads_credentials_from_file_unprivileged() -> None:
    service = unit("mibf-rerun.service")["Service"]
    assert service["Type"] == "oneshot"
    assert service["User"] != "root"
    assert service["EnvironmentFile"] == "/etc/mibf/rerun.env"
    assert service["NoNewPrivileges"] == "true"
    assert service["ProtectSystem"] == "strict"
    assert service["ExecStart"].startswith("/opt/mibf/bin/mibf rerun --all s3://")
    assert not SECRET.search(service["Environment"])


def test_systemd_timer_runs_daily_and_catches_up_missed_runs() -> None:
    timer = unit("mibf-rerun.timer")
    assert timer["Timer"]["OnCalendar"] == "*-*-* 05:15:00"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert "Unit" not in timer["Timer"]  # defaults to the service of the same name


def test_crontab_matches_the_systemd_timer() -> None:
    lines = (INFRA / "schedule/crontab").read_text().splitlines()
    (line,) = (line for line in lines if re.match(r"[\d*]", line))
    minute, hour, *days = line.split()[:5]
    assert (minute, hour, days) == ("15", "5", ["*", "*", "*"])
    service = unit("mibf-rerun.service")["Service"]
    assert line.endswith(service["ExecStart"])
    assert service["EnvironmentFile"] in line
    assert "flock" in line
    assert "%" not in line  # cron treats % as a newline
