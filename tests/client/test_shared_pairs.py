"""Greedy text of real pairs is the target's own: 200 prompts for each of three pairs of public and stand-in models."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.measurement import measure
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.export.bundle import BundleRecipe, build_bundle

pytestmark = [pytest.mark.shared, pytest.mark.slow, pytest.mark.timeout(900)]

NEW_TOKENS = 24
DRAFT_TOKENS = 3
#: Each drafter with its targets.
PAIRS = {"drafter-spm8k": ("target-bbpe12k", "target-spm8k"), "stories260k": ("stories3m",)}

PairMaker = Callable[[str, str], tuple[Pair, Bundle]]


@pytest.fixture(scope="session")
def open_pair(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PairMaker:
    """Joins a drafter and a target of ../shared, each drafter's bundle built once."""
    bundles: dict[str, Bundle] = {}
    models = shared_dir / "models"

    def open_pair(drafter: str, target: str) -> tuple[Pair, Bundle]:
        if drafter not in bundles:
            out = tmp_path_factory.mktemp("bundle") / drafter
            build_bundle(models / drafter, [models / name for name in PAIRS[drafter]], out, BundleRecipe())
            bundles[drafter] = Bundle.open(out)
        return bundles[drafter].pair(str(models / target)), bundles[drafter]

    return open_pair


def task_prompts(data: Path) -> Iterator[Prompt]:
    """50 unseen prompts of each task, in the forms that the stand-in targets were trained on."""
    xsum = islice(lines(data / "xsum/test.jsonl"), 800, None)
    mbpp = (x for x in lines(data / "mbpp/mbpp.jsonl") if 11 <= x["task_id"] <= 510)
    alpaca = json.loads((data / "alpaca/alpaca_data_subset.json").read_text(encoding="utf-8"))
    for task, texts in {
        "gsm8k": (f"Question: {x['question']}\nAnswer:" for x in lines(data / "gsm8k/test.jsonl")),
        "mbpp": (f"# {x['text']}\n" for x in mbpp),
        "alpaca": (f"### Instruction:\n{x['instruction']}\n\n### Response:\n" for x in alpaca if not x["input"]),
        "xsum": (f"Article: {x['document'][:900]}\nSummary:" for x in xsum),
    }.items():
        yield from (Prompt(text=text, task=task) for text in islice(texts, 50))


def story_prompts(data: Path) -> Iterator[Prompt]:
    """The beginnings of 200 stories, 20 to 119 characters long."""
    stories = (data / "tinystories/tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    for n, story in enumerate(islice((s.strip() for s in stories if len(s.strip()) > 119), 200)):
        yield Prompt(text=story[: 20 + n % 100], task="stories")


def lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    "drafter, target, prompts, ties, accepted",
    [
        ("drafter-spm8k", "target-bbpe12k", task_prompts, 2, 500),
        ("drafter-spm8k", "target-spm8k", task_prompts, 2, 500),
        ("stories260k", "stories3m", story_prompts, 2, 1000),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_greedy_text_is_the_targets_own_on_200_prompts(
    open_pair: PairMaker,
    shared_dir: Path,
    drafter: str,
    target: str,
    prompts: Callable[[Path], Iterator[Prompt]],
    ties: int,
    accepted: int,
) -> None:
    """Ties between logits are counted apart and few; enough is accepted for the check to mean something."""
    pair, bundle = open_pair(drafter, target)
    chosen = list(prompts(shared_dir / "data"))
    options = Options(max_new_tokens=NEW_TOKENS, draft_tokens=DRAFT_TOKENS)
    drafted = measure(pair, chosen, options, {"drafted": bundle.adapter()}).drafted["drafted"]
    assert len(chosen) == 200
    assert drafted.greedy.different == 0
    assert drafted.greedy.ties <= ties
    assert drafted.greedy.identical + drafted.greedy.ties == 200
    assert drafted.counters.accepted >= accepted
