"""What a fleet says of itself: the journal's lines, and the metrics file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fleetdraft.common.embedded import EMBEDDED
from fleetdraft.common.errors import FleetError, Reason
from fleetdraft.common.messages import TrainCounters
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.deployment.journal import Follower, Journal
from fleetdraft.server.deployment.metrics import Standing, exposition
from fleetdraft.server.deployment.records import keep_records
from fleetdraft.server.deployment.setup import make_fleet
from fleetdraft.server.report import RoundReport

SAMPLE = re.compile(r'(fleetdraft_[a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+)\})? (\S+)')


def report(number: int, **given: Any) -> RoundReport:
    values: dict[str, Any] = {
        "round": number,
        "participants": ("a", "b", "c"),
        "accepted": ("a", "b"),
        "excluded": {"c": "no answer within 9 s"},
        "codes": {"c": Reason.SILENT},
        "counts": {"silent": 1},
        "release": number,
        "digest": "d" * 64,
        "released": True,
        "seconds": 2.5,
        "bytes_up": 100,
        "bytes_down": 300,
        "families": {"spm": DraftCounters(drafted=10, accepted=4)},
        "training": TrainCounters(),
    }
    return RoundReport(**(values | given))


def samples(text: str) -> dict[str, float]:
    """The values of an exposition by name and labels; fails where a line is neither that nor a comment."""
    found = {}
    for line in text.splitlines():
        if line.startswith("# "):
            assert re.fullmatch(r"# (HELP|TYPE) fleetdraft_[a-z_]+ .+", line)
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        found[match[1] + (f"{{{match[2]}}}" if match[2] else "")] = float(match[3])
    return found


def test_metrics_are_the_sums_of_the_reports() -> None:
    second = report(2, released=False, families={"spm": DraftCounters(drafted=10, accepted=8)})
    found = samples(exposition([report(1), second], Standing(head=1, promoted=1, epsilon=0.5)))
    assert found['fleetdraft_rounds_total{outcome="released"}'] == 1
    assert found['fleetdraft_rounds_total{outcome="kept"}'] == 1
    assert found["fleetdraft_updates_accepted_total"] == 4
    assert found['fleetdraft_answers_excluded_total{reason="silent"}'] == 2
    assert found['fleetdraft_acceptance_rate{family="spm",of="training"}'] == 0.8
    assert found['fleetdraft_tokens_accepted_total{family="spm"}'] == 12
    assert found["fleetdraft_round_seconds_total"] == 5.0
    assert found['fleetdraft_tensor_bytes_total{direction="down"}'] == 600
    assert found["fleetdraft_round"] == 2
    assert (found["fleetdraft_release_promoted"], found["fleetdraft_privacy_epsilon"]) == (1, 0.5)


def test_every_reason_has_a_sample_from_the_start() -> None:
    found = samples(exposition([], Standing(head=0)))
    names = {f'fleetdraft_answers_excluded_total{{reason="{reason}"}}' for reason in Reason}
    assert {name: found[name] for name in names} == dict.fromkeys(names, 0)
    assert not any(name.startswith(("fleetdraft_privacy", "fleetdraft_release_promoted")) for name in found)


def test_a_family_cannot_break_out_of_its_label() -> None:
    families = {'a"} 1\n\\evil': DraftCounters(drafted=1, accepted=1)}
    found = samples(exposition([report(1, families=families)], Standing(head=0)))
    assert found['fleetdraft_acceptance_rate{family="a\\"} 1\\n\\\\evil",of="training"}'] == 1


def test_the_journal_has_a_line_for_each_round_and_each_exclusion(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    journal = Journal(path, run=2**63 + 1)
    journal.note("run-started")
    journal.record(report(1, unmeasured={"b": "no answer within 9 s"}))
    journal.note("run-ended", error="told to stop")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["run-started", "round", "excluded", "unmeasured", "run-ended"]
    assert {line["run"] for line in lines} == {str(2**63 + 1)}
    assert (lines[1]["round"], lines[1]["accepted"], lines[1]["excluded"]) == (1, 2, {"silent": 1})
    assert lines[1]["acceptance"] == {"spm": 0.4}
    assert (lines[2]["client"], lines[2]["code"]) == ("c", "silent")
    assert lines[4]["error"] == "told to stop"


def test_a_follower_reads_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    early = Follower(path, from_start=False)
    assert early.news() == []
    journal = Journal(path, run=1)
    journal.note("run-started")
    late = Follower(path, from_start=False)
    with path.open("ab") as file:
        file.write(b'{"event": "rou')
    assert [event["event"] for event in early.news()] == ["run-started"]
    assert early.news() == []
    with path.open("ab") as file:
        file.write(b'nd"}\n')
    assert [event["event"] for event in early.news()] == ["round"]
    assert [event["event"] for event in late.news()] == ["round"]


def test_a_line_that_a_kill_tore_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    path.write_bytes(b'{"event": "rou')
    Journal(path, run=1).note("run-started")
    assert [event["event"] for event in Follower(path, from_start=True).news()] == ["run-started"]
    path.write_bytes(b"{no JSON}\n")
    with pytest.raises(FleetError, match="is no JSON"):
        Follower(path, from_start=True).news()


def test_a_report_that_comes_twice_is_in_the_journal_once(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "f", bundle=EMBEDDED, host="127.0.0.1", port=9443, names=[], devices=1)
    journal = Journal(tmp_path / "fleet.jsonl", run=1)
    with fleet.registry() as registry:
        for given in (report(1), report(1, seconds=3.5), report(2)):  # the second after a kill, when time has passed
            keep_records(fleet, registry, journal, given)
    events = Follower(tmp_path / "fleet.jsonl", from_start=True).news()
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2]
    found = samples(fleet.path("metrics/fleetdraft.prom").read_text())
    assert found["fleetdraft_updates_accepted_total"] == 4
