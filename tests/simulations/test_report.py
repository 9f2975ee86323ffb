"""Results shown: the page is complete in itself, escapes every text, and says in words what did not pay."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

from fleetdraft.common.errors import Reason
from fleetdraft.common.machine import Machine
from fleetdraft.common.messages import TrainCounters
from fleetdraft.common.metrics import DraftCounters
from fleetdraft.server.report import RoundReport
from fleetdraft.simulations.report import print_table, to_html, write_report
from fleetdraft.simulations.results import ClientRow, FamilyRow, Figures, FleetResults, WidenedTarget


def figures(acceptance: float, tokens_per_s: float) -> Figures:
    return Figures(
        draft_acceptance_rate=acceptance,
        mean_acceptance_length=1 + 2 * acceptance,
        tokens_per_s=tokens_per_s,
        baseline_tokens_per_s=800.0,
    )


def family(name: str, relation: str, before: Figures, after: Figures) -> FamilyRow:
    return FamilyRow(
        family=name,
        target=f"target-{name}",
        parameters=4_200_000,
        vocab_size=4096,
        relation=relation,
        prompts=20,
        before=before,
        after=after,
        greedy_identical="20/20 (ties 0)",
    )


def widened(row: FamilyRow, before_per_s: float, after_per_s: float) -> FamilyRow:
    """The same target at the cost of 24 M parameters, where it writes 200 tokens per second alone."""
    before, after = (
        replace(shipped, tokens_per_s=tokens_per_s, baseline_tokens_per_s=200.0)
        for shipped, tokens_per_s in ((row.before, before_per_s), (row.after, after_per_s))
    )
    wide = WidenedTarget(parameters=24_300_000, before=before, after=after, greedy_identical="19/20 (ties 1)")
    return replace(row, widened=wide)


def client(name: str, family: str, before: float, after: float) -> ClientRow:
    return ClientRow(client=name, family=family, task="json", acceptance_before=before, acceptance_after=after)


def round_report(number: int, excluded: dict[str, str], code: Reason = Reason.NOT_FINITE) -> RoundReport:
    counters = DraftCounters(drafted=8, accepted=2, blocks=4)
    return RoundReport(
        round=number,
        participants=("a", "b", "c"),
        accepted=tuple(name for name in "abc" if name not in excluded),
        excluded=excluded,
        codes=dict.fromkeys(excluded, code),
        counts={code: len(excluded)} if excluded else {},
        release=number,
        digest="0" * 64,
        released=True,
        seconds=2.0,
        bytes_up=1500,
        bytes_down=1500,
        families={"unigram": counters, "bbpe": counters},
        training=TrainCounters(),
    )


RESULTS = FleetResults(
    title="Fleet of 3 devices",
    started="2026-01-02T03:04:05+00:00",
    seconds=61.4,
    machine=Machine(cpu="Test CPU", cores=2, threads=1),
    settings={"rounds": 2, "rule": "ffa"},
    rounds=(round_report(1, {}), round_report(2, {"c": "tensor q is not finite"})),
    families=(
        family("unigram", "same vocabulary", figures(0.25, 600.0), figures(0.5, 1200.0)),
        family("bbpe", "cross-vocabulary", figures(0.125, 500.0), figures(0.25, 1000.0)),
    ),
    clients=(client("a", "unigram", 0.25, 0.5), client("b", "bbpe", 0.125, 0.375), client("c", "bbpe", 0.125, 0.25)),
    notes=("The targets are small.",),
)


class Page(HTMLParser):
    """Collects what a page holds: visible text, open tags left over, and every attribute that could load something."""

    VOID = frozenset({"meta", "br", "path", "use", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.references = "", [], []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def drawings(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)


def printed(results: FleetResults, width: int = 80) -> str:
    stream = StringIO()
    print_table(results, Console(file=stream, width=width))
    return stream.getvalue()


def test_speedup_is_over_the_same_target_alone():
    assert figures(0.25, 600.0).speedup == 0.75


def test_the_worst_client_is_the_one_that_gained_least():
    assert RESULTS.worst_client().client == "c"
    assert RESULTS.worst_client("unigram").client == "a"
    assert RESULTS.worst_client("unknown") is None


def test_each_round_names_the_family_that_is_served_worst():
    while_training = round_report(1, {})
    measured = replace(
        while_training,
        families={"unigram": DraftCounters(drafted=8, accepted=1), "bbpe": DraftCounters(drafted=8, accepted=7)},
        evaluation={"unigram": DraftCounters(drafted=8, accepted=6), "bbpe": DraftCounters(drafted=8, accepted=3)},
    )
    assert measured.worst_family == "bbpe"
    assert replace(measured, evaluation={}).worst_family == "unigram"
    assert replace(measured, evaluation={}, families={"unigram": DraftCounters()}).worst_family is None
    assert RoundReport.from_json(json.loads(json.dumps(measured.to_json()))) == measured
    page = Page(to_html(replace(RESULTS, rounds=(measured,)))).text
    assert "held-out promptsbbpe0.3750.750" in page.replace("\n", "")


def test_each_exclusion_is_shown_with_its_code_and_counted_by_it(tmp_path):
    write_report(RESULTS, tmp_path)
    _, second = json.loads((tmp_path / "report.json").read_text())["rounds"]
    assert (second["codes"], second["counts"]) == ({"c": "not-finite"}, {"not-finite": 1})
    text = Page(to_html(RESULTS)).text.replace("\n", "")
    assert "1 not-finite" in text
    assert "2cnot-finitetensor q is not finite" in text


def test_nothing_to_warn_of_gives_no_warnings():
    assert RESULTS.warnings() == ()


@pytest.mark.parametrize(("tokens_per_s", "warned"), [(799.0, True), (800.0, True), (801.0, False)])
def test_a_drafter_that_does_not_pay_is_said_in_words(tokens_per_s, warned):
    slow = family("slow", "cross-vocabulary", figures(0.1, 500.0), figures(0.2, tokens_per_s))
    results = replace(RESULTS, families=(slow,))
    assert any("does not pay on target-slow as shipped" in line for line in results.warnings()) == warned
    assert ("does not pay on target-slow as shipped" in Page(to_html(results)).text) == warned
    assert ("does not pay on target-slow as shipped" in " ".join(printed(results).split())) == warned


def test_the_reason_is_the_drafts_cost_or_that_too_little_is_accepted():
    dear = replace(figures(0.6, 400.0), mean_acceptance_length=2.2)  # 2.2 tokens for the time of 4.4 steps
    vain = replace(figures(0.1, 600.0), mean_acceptance_length=1.2)  # 1.2 tokens for the time of 1.6 steps
    rows = (family("dear", "same vocabulary", dear, dear), family("vain", "same vocabulary", vain, vain))
    assert replace(RESULTS, families=rows).warnings() == (
        "Drafting does not pay on target-dear as shipped: 0.50x the tokens a second of the target alone; "
        "a step of a target this small (4.2 M parameters) costs about as much as drafting.",
        "Drafting does not pay on target-vain as shipped: 0.75x the tokens a second of the target alone; "
        "too few of the drafted tokens are accepted.",
    )


def test_a_widened_target_is_warned_of_by_itself():
    pays, slow = figures(0.5, 1200.0), figures(0.25, 600.0)
    rows = (
        widened(family("a", "same vocabulary", pays, pays), 150.0, 190.0),
        widened(family("b", "same vocabulary", slow, slow), 250.0, 300.0),
    )
    first, second = replace(RESULTS, families=rows).warnings()
    assert first.startswith("Drafting does not pay on target-a widened to 24 M: 0.95x")
    assert second.startswith("Drafting does not pay on target-b as shipped: 0.75x")


def test_training_that_did_harm_is_said_in_words():
    worse = family("worse", "same vocabulary", figures(0.5, 900.0), figures(0.25, 900.0))
    results = replace(RESULTS, families=(worse,), clients=(client("a", "worse", 0.5, 0.25),))
    assert results.warnings() == (
        "Training made the drafter worse for target-worse: acceptance 0.500 before, 0.250 after.",
        "Acceptance fell for 1 client: a.",
    )


def test_the_json_holds_every_figure_under_the_metric_names(tmp_path):
    write_report(RESULTS, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["families"][0]["after"] == {
        "draft_acceptance_rate": 0.5,
        "mean_acceptance_length": 2.0,
        "tokens_per_s": 1200.0,
        "baseline_tokens_per_s": 800.0,
        "speedup": 1.5,
    }
    assert report["rounds"][1]["excluded"] == {"c": "tensor q is not finite"}
    assert report["clients"][2]["acceptance_after"] == 0.25


def test_the_json_holds_the_widened_figures_under_the_same_names(tmp_path):
    row = widened(RESULTS.families[0], 250.0, 300.0)
    write_report(replace(RESULTS, families=(row, RESULTS.families[1])), tmp_path)
    first, second = json.loads((tmp_path / "report.json").read_text())["families"]
    assert first["widened"]["parameters"] == 24_300_000
    assert first["widened"]["after"] == {
        "draft_acceptance_rate": 0.5,
        "mean_acceptance_length": 2.0,
        "tokens_per_s": 300.0,
        "baseline_tokens_per_s": 200.0,
        "speedup": 1.5,
    }
    assert second["widened"] is None


def test_the_page_says_what_widening_is_and_labels_both_sizes():
    html = to_html(replace(RESULTS, families=(widened(RESULTS.families[0], 250.0, 300.0),)))
    text = Page(html).text
    shown = ("as shipped, 4.2 M", "widened to 24 M", "1.25× → 1.50×", "19/20 (ties 1)", "writes the same text")
    assert [expected for expected in shown if expected not in text] == []
    assert len(drawings(html)) == 5
    assert "widened" not in Page(to_html(RESULTS)).text.lower()


def test_the_page_is_complete_in_itself(tmp_path):
    html = write_report(RESULTS, tmp_path).read_text()
    page = Page(html)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert re.findall(r"url\((?!#)|@import", html) == []
    assert set(re.findall(r"https?://[^\"<\s]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_page_shows_the_figures_and_who_was_excluded_and_why():
    text = Page(to_html(RESULTS)).text
    shown = ("0.250 → 0.500", "0.75× → 1.50×", "20/20 (ties 0)", "tensor q is not finite", "Test CPU", "1 min 1 s")
    assert [expected for expected in shown if expected not in text] == []


def test_every_text_is_escaped():
    evil = '<b onload="x">&$^_\\'
    results = replace(
        RESULTS,
        title=evil,
        settings={evil: evil},
        notes=(evil,),
        clients=tuple(replace(row, client=evil, task=evil) for row in RESULTS.clients),
        families=tuple(replace(row, family=evil, target=evil, relation=evil) for row in RESULTS.families),
        rounds=(replace(RESULTS.rounds[1], excluded={evil: evil}, families={evil: DraftCounters()}),),
    )
    page = Page(to_html(results))
    assert page.open == []
    assert set(page.tags) == set(Page(to_html(RESULTS)).tags)
    assert page.text.count(evil) > 20
    assert evil in "".join(printed(results, width=200).split("\n"))


def test_charts_are_well_formed_named_and_coloured_by_the_page():
    html = to_html(RESULTS)
    style = re.search(r"<style>(.*?)</style>", html, flags=re.DOTALL).group(1)
    for drawing in drawings(html):
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img" and root.get("aria-label")
        variables = set(re.findall(r"var\((--[\w-]+)\)", drawing))
        assert variables
        assert all(f"{name}:" in style for name in variables)
        assert not re.search(r"#[0-9a-f]{6}", drawing)
    assert len(drawings(html)) == 4


def test_the_same_results_give_the_same_page():
    assert to_html(RESULTS) == to_html(RESULTS)


def test_sections_without_content_are_left_out():
    page = Page(to_html(replace(RESULTS, rounds=(), clients=(), families=(), notes=())))
    assert page.open == []
    assert "svg" not in page.tags and "Excluded" not in page.text
    assert "Fleet of 3 devices" in printed(replace(RESULTS, rounds=(), clients=(), families=()))


def test_the_table_fits_a_terminal_of_80_columns():
    text = printed(RESULTS)
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["unigram", "none", "800", "1.00x", "a"] in rows
    assert ["after", "0.250", "1.50", "1,000", "1.25x", "0.250"] in rows
    assert ["cross-vocabulary", "before", "0.125", "1.25", "500", "0.62x", "0.125"] in rows
    assert "Round 2 excluded c: tensor q is not finite" in text


def test_the_table_shows_the_widened_target_below_the_one_as_shipped():
    text = printed(replace(RESULTS, families=(widened(RESULTS.families[0], 250.0, 300.0),)))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["widened", "to", "24", "M", "none", "200", "1.00x"] in rows
    assert ["after", "300", "1.50x"] in rows
    assert "writes the same text" in " ".join(text.split())


def test_the_machine_names_its_processor():
    here = Machine.here(threads=1)
    assert here.cpu and here.cores >= 1
