"""The operators' day: three handoffs vanish, and every command says what it should, with the right exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cli.world import OBSERVER, World

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.slow]

FINE, PROBLEM, USAGE, UNREACHABLE, BLIND = range(5)


class Command:
    """`hotline` in one folder; gives what it printed as JSON, and checks the exit code."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def __call__(self, *words: str, code: int = FINE):
        done = subprocess.run(
            [sys.executable, "-m", "cli", *words, "--dir", str(self.folder), "--json"],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout[-500:], done.stderr[-500:])
        return json.loads(done.stdout) if done.stdout else None


@pytest.fixture
def hotline(tmp_path):
    tmp_path.chmod(0o755)
    command = Command(tmp_path / "demo")
    yield command
    command("down")


def test_swallowed_handoffs_are_named_explained_sent_again_and_recovered(hotline):
    summary = hotline("demo", "--drop", "3", "--keep")
    ledger = summary["ledger"]
    assert (ledger["injected"], ledger["found"], ledger["false"], ledger["recovered"]) == (3, 3, 0, 3)
    assert 0 < ledger["detection_s"]["p50"] <= ledger["detection_s"]["max"] <= 5
    assert summary["cases"]["recorded"] == summary["cases"]["told"] == 47

    found = hotline("handoffs", "--state", "recovered")
    assert (found["lost"], len(found["handoffs"])) == (0, 3)
    event = found["handoffs"][0]["event_id"]
    (explained,) = hotline("lost", "explain", event, "--check")
    verdict = explained["verdicts"][-1]
    assert verdict["committed"] > explained["offset"]
    assert all(mark["read"] >= mark["end"] for mark in verdict["barrier"])
    assert any(event in line for line in explained["by_hand"])
    assert explained["answers_found"], "it was sent again: now there is an answer"
    assert {row["word"] for row in hotline("lag")["lag"]} == {"ok"}
    assert hotline("lost", "list")["handoffs"] == hotline("dead", "list")["handoffs"] == []
    traced = hotline("trace", event)
    assert traced["event"]["custody"][0]["state"] == "recovered"
    assert traced["causes"][-1]["event_id"] == traced["event"]["cause"]
    assert {node["event"] for node in traced["effects"]} >= {"router.case-routed.v1"}
    assert all(node["offset"] is not None for node in (*traced["causes"], *traced["effects"]))
    assert traced["missing"] == []
    assert hotline("canary", "run")["flagged"]
    scrubbed = hotline("audit", "scrub", "--hours", "1")
    assert (scrubbed["differences"], scrubbed["behind"]) == ([], None), (
        "what was sent again is the same twice"
    )
    assert scrubbed["handoffs"] > 500
    assert hotline("audit", "verify") == {"actions": 1, "faults": []}
    assert [action["verb"] for action in hotline("audit", "list")] == ["redrive"]
    assert hotline("redrive", event, "--dry-run") == [], "what has recovered is not sent again"
    assert hotline("waive", event, "--reason", "nothing to do")["handoffs"] == 0
    status = hotline("status")
    assert (status["observer"]["state"], status["lessons"]["state"]) == ("ok", "not started")

    hotline("handoffs", "--state", "nonsense", code=USAGE)
    hotline("redrive", code=USAGE)
    hotline("lost", "show", "nobody-has-said-this", code=USAGE)
    os.kill(World(hotline.folder).pid_of(OBSERVER), signal.SIGSTOP)
    time.sleep(11)
    assert "judged nothing" in hotline("handoffs", code=BLIND)["blind"]
    os.kill(World(hotline.folder).pid_of(OBSERVER), signal.SIGCONT)


def test_where_nothing_runs_the_commands_say_so(tmp_path):
    nowhere = Command(tmp_path / "nowhere")
    for words in (["handoffs"], ["lag"], ["lost", "list"], ["dead", "list"], ["audit", "verify"]):
        nowhere(*words, code=UNREACHABLE)
