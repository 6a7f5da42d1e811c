"""Alerts, dashboard and runbook speak of what exists: a metric that nobody exports never wakes anybody."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from chassis.metrics import StageMetrics
from chassis.transport import Place
from observer.metrics import STATUSES, ObserverMetrics
from services.intake.door.house import House
from services.intake.door.switches import Switches

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = PROMETHEUS / "hotline.rules.yml"
RUNBOOK = ROOT / "docs/runbook"

PLACE = Place("intake.cases", 0)
EDGE = "intake.case-recorded→router"

promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    promtool is None, reason="promtool is not installed; it comes with the system's package `prometheus`"
)


def alerts() -> list[dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict:
    return json.loads((ROOT / "deploy/grafana/hotline.json").read_text())


def dashboard_exprs() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def metrics_in(expr: str) -> set[str]:
    words = re.findall(r"[a-z_]+", expr)
    return {word for word in words if word.startswith(("pipeline_", "handoff_", "door_"))}


def exported_by(registry: CollectorRegistry) -> set[str]:
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        family.name + ending for family in registry.collect() for ending in endings.get(family.type, ("",))
    }


def observer_metrics() -> ObserverMetrics:
    return ObserverMetrics([EDGE], ["router"], ["intake.cases"], ["router"])


def door_registry() -> CollectorRegistry:
    house = House(None, None, None, None, None)  # type: ignore[arg-type] # its metrics need no rooms
    Switches(house, {})
    return house.metrics.registry


def samples_of(metrics: ObserverMetrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


# ------------------------------------------------------------ the files agree with each other


def test_every_metric_of_rules_and_dashboard_is_exported():
    exported = exported_by(observer_metrics().registry) | exported_by(StageMetrics("router").registry)
    exported |= exported_by(door_registry())
    named = {name for rule in alerts() for name in metrics_in(rule["expr"])}
    drawn = {name for expr in dashboard_exprs() for name in metrics_in(expr)}
    assert named
    assert drawn
    assert named - exported == set()
    assert drawn - exported == set()


def test_no_rule_reads_the_lag_in_records_that_two_processes_export():
    exported_twice = exported_by(observer_metrics().registry) & exported_by(StageMetrics("router").registry)
    assert exported_twice == {"pipeline_consumer_lag_records"}
    assert not [rule["alert"] for rule in alerts() if exported_twice & metrics_in(rule["expr"])]


def test_every_alert_has_a_page_in_the_runbook_and_every_page_an_alert():
    names = {rule["alert"] for rule in alerts()}
    pages = {page.stem for page in RUNBOOK.glob("*.md")} - {"README"}
    assert pages == names
    listed = set(re.findall(r"\]\((\w+)\.md\)", (RUNBOOK / "README.md").read_text()))
    assert listed == names


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_how_urgent_it_is_what_happened_and_what_to_do(rule):
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert (ROOT / rule["annotations"]["runbook"]).is_file()
    assert (ROOT / rule["annotations"]["runbook"]).stem == rule["alert"]


def test_every_alert_fires_in_one_case_and_is_silent_in_another():
    cases = yaml.safe_load((PROMETHEUS / "hotline.rules.test.yml").read_text())["tests"]
    asked = [check for case in cases for check in case["alert_rule_test"]]
    fired = {
        (check["alertname"], expected["exp_labels"]["severity"])
        for check in asked
        for expected in check.get("exp_alerts", ())
    }
    silent = {check["alertname"] for check in asked if not check.get("exp_alerts")}
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts()}
    assert silent == {rule["alert"] for rule in alerts()}


def test_a_page_of_the_runbook_fits_on_a_screen():
    pages = [page for page in RUNBOOK.glob("*.md") if page.stem != "README"]
    assert not [page.name for page in pages if len(page.read_text().splitlines()) > 35]


def test_the_dashboard_asks_any_prometheus_and_its_panels_have_ids_of_their_own():
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    asked = [panel for panel in board["panels"] if panel["type"] != "row"]
    sources = [part["datasource"]["uid"] for panel in asked for part in (panel, *panel["targets"])]
    assert set(sources) == {"${datasource}"}
    assert [entry["name"] for entry in board["templating"]["list"]] == ["datasource"]


def test_panels_do_not_lie_on_each_other():
    taken: dict[tuple[int, int], int] = {}
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        for x in range(grid["x"], grid["x"] + grid["w"]):
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["id"]) == panel["id"], panel["title"]


# ------------------------------------------------------------ what the observer exports


def test_every_counter_begins_at_0_because_increase_is_blind_to_one_born_at_1():
    counters = [family for family in observer_metrics().registry.collect() if family.type == "counter"]
    for family in counters:
        values = [sample.value for sample in family.samples if sample.name == f"{family.name}_total"]
        assert values, family.name
        assert set(values) == {0}, family.name


@pytest.mark.parametrize("name", ["dropped_open", "dead_lettered_open", "timer_lost_open", "open"])
def test_what_pages_on_a_count_is_0_and_not_absent_from_the_start(name):
    assert samples_of(observer_metrics(), f"handoff_{name}") == {(EDGE,): 0}


def test_no_label_can_hold_a_case_or_an_event():
    allowed = {"group", "topic", "partition", "edge", "outcome", "status", "service", "department", "reason"}
    metrics = observer_metrics()
    metrics.lag("router", PLACE, 1, 1)
    labels = {
        label for family in metrics.registry.collect() for sample in family.samples for label in sample.labels
    }
    assert labels - {"le"} <= allowed


def test_a_group_is_blind_until_somebody_looked_and_then_exactly_one_word_holds():
    metrics = observer_metrics()
    shown = samples_of(metrics, "pipeline_consumer_status")
    assert [status for (_, status), value in shown.items() if value] == ["blind"]
    for word in STATUSES:
        metrics.status("router", word)
        shown = samples_of(metrics, "pipeline_consumer_status")
        assert {status for (_, status), value in shown.items() if value} == {word}
        assert len(shown) == len(STATUSES)


def test_a_word_that_no_alert_knows_is_refused():
    with pytest.raises(ValueError, match="'asleep' is no status"):
        observer_metrics().status("router", "asleep")


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_what_is_not_known_is_absent_and_neither_nan_nor_0(unknown):
    metrics = observer_metrics()
    for seconds in (7.0, unknown, unknown):
        metrics.lag("router", PLACE, 3, seconds)
        metrics.drains_in("router", seconds)
        metrics.headroom("router", "intake.cases", seconds)
        expected = [7.0] if seconds == 7.0 else []
        for name in ("lag", "drain_eta"):
            assert list(samples_of(metrics, f"pipeline_consumer_{name}_seconds").values()) == expected
        assert list(samples_of(metrics, "pipeline_retention_headroom_seconds").values()) == expected
    assert list(samples_of(metrics, "pipeline_consumer_lag_records").values()) == [3]


def test_before_anything_was_measured_there_is_no_headroom_that_would_page():
    metrics = observer_metrics()
    for name in ("retention_headroom_seconds", "consumer_lag_seconds", "consumer_drain_eta_seconds"):
        assert samples_of(metrics, f"pipeline_{name}") == {}


def test_a_department_or_a_reason_that_is_no_longer_named_goes_back_to_0():
    metrics = observer_metrics()
    metrics.overdue(EDGE, {"cards": 2, "fraud": 1})
    metrics.overdue(EDGE, {"fraud": 3})
    assert samples_of(metrics, "handoff_overdue_open") == {
        (EDGE, "-"): 0,
        (EDGE, "cards"): 0,
        (EDGE, "fraud"): 3,
    }
    metrics.blocked("intake.cases", {"open_txn": 12.5})
    metrics.blocked("intake.cases", {"no_leader": 1})
    assert samples_of(metrics, "handoff_audit_blocked_seconds") == {
        ("intake.cases", "open_txn"): 0,
        ("intake.cases", "no_leader"): 1,
    }


# ------------------------------------------------------------ Prometheus agrees


def run_promtool(*arguments: str | Path) -> None:
    assert promtool is not None
    done = subprocess.run(
        [promtool, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_reads_the_rules_and_the_example():
    run_promtool("check", "rules", RULES)
    run_promtool("check", "config", PROMETHEUS / "prometheus.yml")


@needs_promtool
def test_the_rules_do_what_their_tests_say():
    run_promtool("test", "rules", PROMETHEUS / "hotline.rules.test.yml")


@needs_promtool
def test_prometheus_understands_every_question_of_the_dashboard(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, expr in enumerate(dashboard_exprs())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, allow_unicode=True))
    run_promtool("check", "rules", file)
