"""The device's commands generate and adapt. They need the base install only."""

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ...common.embedded import EMBEDDED, located
from ...common.errors import ConfigError
from ...common.files import check_file, write_json
from ...common.losses import DIVERGENCES
from ..decoding.continuation import Generation
from ..decoding.options import Options
from ..decoding.sampling import Sampling
from ..guarding.diagnosis import AcceptanceAlarm
from ..learning.learner import LearnerConfig
from ..learning.teacher import PROJECTIONS, Projection
from ..learning.trainer import AdamWConfig
from ..online.background import BackgroundConfig
from ..online.online import OnlineConfig
from ..pair import Pair
from ..prompts import Prompt, check_lengths, is_text, read_prompts
from ..spelling.ngrams import NgramCache
from .adapt import (
    adapt_with_state,
    adapt_without_state,
    adaptation_json,
    check_outputs,
    checked_schedule,
    objective_of,
    print_adapted,
)
from .online import Stderr, learning_pair
from .opened import open_pair
from .options import (
    AdapterOrReleaseOption,
    BundleOption,
    ControllerOption,
    DraftTokensOption,
    MinP,
    NgramsOption,
    PathsOption,
    PenaltyOption,
    PromptsOption,
    SeedOption,
    StateOption,
    StopOption,
    TargetOption,
    TargetRuntimeOption,
    TemperatureOption,
    ThreadsOption,
    TokensOption,
    TopK,
    TopP,
)


def generate(
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    target_runtime: TargetRuntimeOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    stop: StopOption = None,
    seed: SeedOption = 0,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    controller: ControllerOption = "fixed",
    adapter: AdapterOrReleaseOption = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="Use the target alone.")] = False,
    paths: PathsOption = "full",
    ngrams: NgramsOption = None,
    state: StateOption = None,
    threads: ThreadsOption = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming text.")] = False,
) -> None:
    """Continues a prompt with a target model, sped up by the bundle's drafter.

    The text is exactly what the target alone would write (at temperature 0) or sample (above). With --state the drafter
    learns in the background from what is written, and --adapter is the fleet's release, beside which it learns.

    Examples:

      fleetdraft generate --prompt "def parse(self, text):"

      fleetdraft generate --prompt "def parse(self, text):" --state my-state

      fleetdraft generate --bundle B --target models/stories3m --prompt "Once upon a time" --temperature 0.8 --json
    """
    if not prompt or not is_text(prompt):
        raise ConfigError(f"--prompt is {'not UTF-8 text' if prompt else 'empty'}, expected some text to continue")
    sampling = Sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty
    )
    options = Options(
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        draft_tokens=0 if no_draft else draft_tokens,
        controller=controller,
        seed=seed,
    )
    if state is not None and ngrams is not None:
        raise ConfigError("--ngrams and --state are both given, expected one: a state keeps the n-grams itself")
    if state is not None and options.draft_tokens == 0:
        off = "--no-draft" if no_draft else "--draft-tokens 0"
        raise ConfigError(f"{off} and --state are both given, expected one: what is not drafted teaches nothing")
    opened, stderr = open_pair(bundle, target, threads, adapter, paths, target_runtime), Stderr()
    pair = opened.pair
    check_lengths([Prompt(text=prompt, task="", where="--prompt")], pair.target_codec, pair.target.limit)
    if state is None:
        alarm = AcceptanceAlarm(pair.paths, sampling.temperature, stderr.say)
        with _remembered(pair, ngrams):
            if as_json:
                print(_json(_generation_json(pair.name, pair.drafted.run(prompt, options, alarm))))
            else:
                _show(prompt, pair.drafted.stream(prompt, options, alarm), stderr)
        return
    release = opened.adapter if adapter is not None else None
    with learning_pair(state, opened.bundle, pair, release, OnlineConfig(seed=seed), stderr) as (online, _):
        if as_json:
            told = _generation_json(pair.name, online.run(prompt, options))
            print(_json(told | {"status": online.status()}))
        else:
            _show(prompt, online.stream(prompt, options), stderr)


def _show(prompt: str, pieces: Iterator[str], stderr: Stderr) -> None:
    """Writes a text while it is decided."""
    with stderr.waiting():
        sys.stdout.write(prompt)
        try:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            sys.stdout.write("\n")  # an interrupted text ends its line too
            sys.stdout.flush()
            if isinstance(pieces, Generator):
                pieces.close()  # what was read of it is learned from now, not when it is collected


def adapt(
    prompts: PromptsOption,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="ADAPTER", help="PEFT directory to write; an older adapter there is replaced."),
    ] = None,
    state: StateOption = None,
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    target_runtime: TargetRuntimeOption = None,
    adapter: AdapterOrReleaseOption = None,
    temperature: TemperatureOption = 0.0,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    controller: ControllerOption = "fixed",
    seed: SeedOption = 0,
    passes: Annotated[int, typer.Option("--passes", min=1, help="How often to go through the prompts.")] = 1,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="Of AdamW, above 0 and below 1.")
    ] = AdamWConfig().learning_rate,
    steps: Annotated[
        int, typer.Option("--steps", help="Training steps after every few prompts.")
    ] = LearnerConfig().steps,
    every_prompts: Annotated[
        int, typer.Option("--every-prompts", help="Prompts between trainings.")
    ] = LearnerConfig().every_prompts,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="prompts|joint|interleaved",
            help="What is trained: the adapter alone (prompts); with --state also the head of --controller, after "
            "each training of the adapter (joint) or after each of the texts in between (interleaved).",
        ),
    ] = LearnerConfig().schedule,
    background: Annotated[
        bool, typer.Option("--background", help="Train beside the texts instead of between them (needs --state).")
    ] = False,
    ngram_weight: Annotated[
        float | None,
        typer.Option("--ngram-weight", help="Lambda of the hybrid loss (default: 0.2; 0 with --projection law)."),
    ] = None,
    dynamic_lambda: Annotated[
        bool,
        typer.Option(
            "--dynamic-lambda",
            help="Multiply lambda by the target's probability of each n-gram (published with --ngram-weight 1).",
        ),
    ] = False,
    divergence: Annotated[
        str | None,
        typer.Option(
            "--divergence",
            metavar="|".join(DIVERGENCES),
            help="What is lowered between the drafter's distribution and the target's (default: forward-kl).",
        ),
    ] = None,
    projection: Annotated[
        str,
        typer.Option(
            "--projection",
            metavar="|".join(PROJECTIONS),
            help="How the drafter sees the target's distribution: single tokens, by first tokens, by the law.",
        ),
    ] = LearnerConfig().projection,
    threads: ThreadsOption = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
) -> None:
    """Generates prompts and lets the drafter learn online from what the target accepts.

    No text leaves the process. With --out the adapter is written in PEFT format; with --state all that is learned is
    kept in a directory, harmful training is rolled back, and the same command goes on where it was killed or
    interrupted; --adapter is then the fleet's release, beside which the device's own adapter learns.

    Examples:

      fleetdraft adapt --bundle B --target models/stories3m --prompts mine.jsonl --out my-adapter

      fleetdraft adapt --prompts mine.jsonl --state my-state --background
    """
    if draft_tokens < 1:
        raise ConfigError(f"--draft-tokens is {draft_tokens}, expected at least 1: what is not drafted teaches nothing")
    check_outputs(out, state, located(bundle), json_file)
    learning = LearnerConfig(
        every_prompts=every_prompts,
        steps=steps,
        schedule=checked_schedule(schedule, background, state),
        objective=objective_of(projection, divergence, ngram_weight, dynamic_lambda),
        optimizer=AdamWConfig(learning_rate=learning_rate),
        projection=cast(Projection, projection),
    )
    options = Options(
        sampling=Sampling(temperature=temperature),
        max_new_tokens=max_new_tokens,
        draft_tokens=draft_tokens,
        controller=controller,
        seed=seed,
    )
    stream = read_prompts(prompts)
    opened = open_pair(bundle, target, threads, adapter, runtime=target_runtime)
    check_lengths(stream, opened.pair.target_codec, opened.pair.target.limit)
    if state is None:
        learned = adapt_without_state(opened, stream * passes, options, learning)
    else:
        release = opened.adapter if adapter is not None else None
        config = OnlineConfig(learning=learning, background=BackgroundConfig() if background else None, seed=seed)
        learned = adapt_with_state(state, out, opened, release, stream, passes, options, config)
    if out is not None:
        learned.adapter.save(out, opened.bundle.base)
    if json_file is not None:
        write_json(json_file, adaptation_json(out, learned))
    print_adapted(out, state, learned)


@contextmanager
def _remembered(pair: Pair, file: Path | None) -> Iterator[None]:
    """Restores the pair's n-grams from ``file``, and writes them back however the generation ends."""
    cache = pair.paths
    if file is None:
        yield
        return
    if not isinstance(cache, NgramCache):
        raise ConfigError(f"--ngrams {file} is given without --paths online, which alone learns n-grams")
    check_file(file)
    if notice := cache.restore(file):
        print(f"fleetdraft: {notice}", file=sys.stderr)
    try:
        yield
    finally:
        cache.save(file)


def _generation_json(target: str, generation: Generation) -> dict[str, Any]:
    counters = generation.counters
    return {
        "schema": 1,
        "target": target,
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "tokens_per_s": counters.tokens_per_s,
        "draft_acceptance_rate": counters.draft_acceptance_rate,
        "mean_acceptance_length": counters.mean_acceptance_length,
        "counters": counters.to_json(),
    }


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
