"""A stream of prompts adapted to online."""

from dataclasses import replace

import pytest

from fleetdraft.client.bundle import Bundle
from fleetdraft.client.decoding.options import Options
from fleetdraft.client.learning.learner import LearnerConfig
from fleetdraft.client.online.adaptation import adapt_online
from fleetdraft.client.pair import Pair
from fleetdraft.client.prompts import Prompt
from fleetdraft.common.metrics import DraftCounters

OPTIONS = Options(max_new_tokens=12)
CONFIG = LearnerConfig(every_prompts=4, steps=3)


@pytest.mark.parametrize(("texts", "steps"), [(3, 3), (4, 3), (8, 6), (9, 7)])
def test_there_are_as_many_steps_as_texts_call_for(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt], texts: int, steps: int
) -> None:
    """Three steps for four texts, and their share, rounded up, for what is left at the end."""
    learner = pairs["spm"].learner(bundle.adapter(), CONFIG, seed=1)
    adapt_online(pairs["spm"], learner, prompts[:texts], OPTIONS)
    assert learner.training.steps == steps
    assert learner.pending == 0


def test_progress_adds_up_to_the_result_and_seeds_advance(
    bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt]
) -> None:
    seen: list[DraftCounters] = []
    pair = pairs["bpe1"]
    learner = pair.learner(bundle.adapter(), CONFIG, seed=1)
    total = adapt_online(pair, learner, prompts[:3], OPTIONS, seen.append)
    assert len(seen) == 3
    assert sum(seen, DraftCounters()) == total


def test_what_was_learned_drafts_the_next_text(bundle: Bundle, pairs: dict[str, Pair], prompts: list[Prompt]) -> None:
    """The same prompt again and again: at the end more of the draft is accepted than at the beginning."""
    pair, seen = pairs["bpe3"], list[DraftCounters]()
    learner = pair.learner(bundle.adapter(), replace(CONFIG, every_prompts=1, steps=6), seed=1)
    adapt_online(pair, learner, prompts[:1] * 8, OPTIONS, seen.append)
    assert seen[-1].draft_acceptance_rate > seen[0].draft_acceptance_rate
