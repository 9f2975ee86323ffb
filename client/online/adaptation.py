"""A stream of prompts generated while the drafter learns from them, online and in a single pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...common.metrics import DraftCounters
from ..decoding.options import Options
from ..learning.learner import OnlineLearner
from ..pair import Pair
from ..prompts import Prompt


def adapt_online(
    pair: Pair,
    learner: OnlineLearner,
    prompts: Sequence[Prompt],
    options: Options,
    progress: Callable[[DraftCounters], None] = lambda _: None,
) -> DraftCounters:
    """Generates each prompt once; the learner trains in between and its newest adapter drafts the next text.

    At the end it trains on what came since its last training, if anything did.

    Args:
      pair: target and drafter.
      learner: made by ``pair.learner``.
      prompts: in the order in which they come.
      options: the seed is advanced by one for each prompt.
      progress: called after each prompt, and what it made the learner train, with that prompt's counters.

    Returns:
      The sum of the counters, learning time not included.
    """
    total = DraftCounters()
    for index, prompt in enumerate(prompts):
        learner.begin(pair.target_codec.prompt_tokens(prompt.text))
        generation = pair.drafted.run(prompt.text, replace(options, seed=options.seed + index), learner)
        learner.end()
        total += generation.counters
        progress(generation.counters)
    learner.finish()
    return total
