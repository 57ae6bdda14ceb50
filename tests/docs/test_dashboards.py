"""Prometheus evaluates the dashboard and the alert rules with metrics that the SDK has exported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import prometheus
from tests.support.issuers import wait_until
from tests.support.processes import ROOT, service

FOLDER = ROOT / "examples" / "dashboards"
DASHBOARD = json.loads((FOLDER / "token-relay.json").read_text("utf-8"))
RULES = FOLDER / "alerts.yaml"
JOB = "user-service"
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# This service has no outage, so the corresponding rule and panel are tested only with promtool.
WITHOUT_SERIES = {"TokenVerificationUnavailable", "TokensWithheld"}


def expressions(panel: dict[str, Any]) -> list[str]:
    """Return a panel's queries with Grafana's variables replaced by their values."""
    values = {"$__rate_interval": "1m", "$__range": "1m", "$job": JOB}
    found = []
    for target in panel["targets"]:
        expression: str = target["expr"]
        for name, value in values.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        found.append(expression)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[prometheus.Prometheus]:
    """Run a Prometheus server that has scraped a service several times."""
    prometheus.program("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        service(sys.executable, "-m", "tests.support.metered", cwd=ROOT) as metered,
        prometheus.scraping(metered.url, RULES, directory, job=JOB) as running,
    ):
        failed = 'rate(token_relay_exchange_duration_seconds_count{error_type!=""}[1m]) > 0'
        refused = 'rate(token_relay_verifications_total{token_relay_reason="wrong_audience"}[1m]) > 0'
        wait_until(lambda: bool(running.query(failed) and running.query(refused)), 60)
        yield running


def test_dashboard_has_the_form_of_grafana() -> None:
    """Each panel has an ID, a separate position, and the data source that the user selects."""
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    cells = [(x + i, y + j) for h, w, x, y in places for i in range(w) for j in range(h)]

    assert list(DASHBOARD["panels"][0]["gridPos"]) == ["h", "w", "x", "y"]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)
    assert all(panel["title"] and panel["description"] for panel in PANELS)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "job"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_query_has_a_result(panel: dict[str, Any], server: prometheus.Prometheus) -> None:
    """Prometheus accepts each query and returns a number from the exported metrics."""
    for expression in expressions(panel):
        result = server.query(expression)

        assert result, expression
        assert all(series["value"][1] != "NaN" for series in result), expression


def test_variable_lists_the_service(server: prometheus.Prometheus) -> None:
    """The variable's query uses Grafana's `label_values` function with a selector and a label."""
    (variable,) = [item for item in DASHBOARD["templating"]["list"] if item["name"] == "job"]
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]

    assert {series["metric"][label] for series in server.query(selector)} == {JOB}


def test_labels_that_are_selected_exist(server: prometheus.Prometheus) -> None:
    """Each label in a query or a rule is a label that the exporter writes."""
    texts = [e for panel in PANELS for e in expressions(panel)]
    texts += [rule["expr"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]
    named = {
        name for text in texts for name in re.findall(r"\b(token_relay_\w+|server_address|error_type|job)\b", text)
    }
    metrics = {name for name in named if re.search(r"_(total|bucket|count)$", name)}

    assert len(metrics) == 4
    assert metrics <= set(server.get("label/__name__/values"))
    assert named - metrics <= set(server.get("labels"))


# Alert rules


def test_there_are_four_rules() -> None:
    """Each of the four rules has a severity and instructions."""
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]

    assert len(group["rules"]) == 4
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_promtool_accepts_the_rules() -> None:
    """Debian's promtool parses the rules, and their unit tests pass."""
    for command in (["check", "rules", RULES.name], ["test", "rules", "alerts.test.yaml"]):
        ran = subprocess.run(
            [prometheus.program("promtool"), *command], cwd=FOLDER, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_finds_a_wrong_threshold(tmp_path: Path) -> None:
    """The rules' unit tests fail if a threshold is wrong."""
    for path in FOLDER.glob("alerts*.yaml"):
        (tmp_path / path.name).write_text(path.read_text("utf-8").replace("> 0.05", "> 0.5"))

    ran = subprocess.run(
        [prometheus.program("promtool"), "test", "rules", "alerts.test.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1


def test_rules_are_evaluated_with_exported_metrics(server: prometheus.Prometheus) -> None:
    """Every rule is healthy, and a rule whose condition is true in this service is pending."""

    def rules() -> dict[str, dict[str, Any]]:
        return {rule["name"]: rule for group in server.get("rules")["groups"] for rule in group["rules"]}

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules().values()), 60)
    wait_until(lambda: {n for n, r in rules().items() if r["state"] == "pending"} == set(rules()) - WITHOUT_SERIES, 60)

    assert len(rules()) == 4
