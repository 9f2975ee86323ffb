"""The device's commands: generate, adapt, eval. They need the base install only."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..common.bundle import check_outside
from ..common.embedded import EMBEDDED, located
from ..common.errors import ConfigError
from ..common.files import check_file, check_replaceable, write_json
from ..common.lora import ABOUT, LoraAdapter
from ..common.losses import DIVERGENCES
from ..common.metrics import DraftCounters
from ..common.progress import progress
from .adaptation import adapt_online
from .bundle import Bundle
from .controllers import CONTROLLERS
from .diagnosis import AcceptanceAlarm
from .learner import LearnerConfig, OnlineLearner
from .measurement import measure
from .ngrams import NgramCache
from .objective import Objective
from .options import Options
from .pair import Pair
from .prompts import Prompt, check_lengths, is_text, read_prompts
from .sampling import Sampling
from .tokenizer_pair import path_kind
from .trainer import AdamWConfig

BundleOption = Annotated[
    Path, typer.Option("--bundle", metavar="BUNDLE", help="Bundle directory; 'embedded' is the one shipped inside.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="DIR",
        help="Hugging Face directory the bundle was built for, or name of a target inside it (default: its first).",
    ),
]
PromptsOption = Annotated[
    Path, typer.Option("--prompts", metavar="FILE", help='JSONL, one {"prompt": …, "task": …} a line.')
]
AdapterOption = Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="LoRA adapter (PEFT directory).")]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 is greedy.")]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Longest text in target tokens.")]
DraftTokensOption = Annotated[int, typer.Option("--draft-tokens", help="Drafter tokens per block; 0 is no drafting.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="ONNX Runtime threads of the target.")]
TopP = Annotated[float, typer.Option("--top-p", help="Nucleus sampling; 1 is off.")]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from the K likeliest; 0 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="Least share of the likeliest token's probability; 0 is off.")]
PenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1 makes tokens of the text less likely; 1 is off.")
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; repeat for several.")
]
ControllerOption = Annotated[
    str,
    typer.Option(
        "--controller",
        metavar="|".join(CONTROLLERS),
        help="How many of --draft-tokens a block drafts: all, or by the clock as many as pay.",
    ),
]
PathsOption = Annotated[
    str,
    typer.Option(
        "--paths",
        metavar="full|online|direct",
        help="What may be drafted: all the drafter can spell, what the target emitted before, single tokens.",
    ),
]
NgramsOption = Annotated[
    Path | None,
    typer.Option(
        "--ngrams", metavar="FILE", help="With --paths online: the n-grams learned so far; read, and written again."
    ),
]


def generate(
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
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
    adapter: AdapterOption = None,
    no_draft: Annotated[bool, typer.Option("--no-draft", help="Use the target alone.")] = False,
    paths: PathsOption = "full",
    ngrams: NgramsOption = None,
    threads: ThreadsOption = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of streaming text.")] = False,
) -> None:
    """Continues a prompt with a target model, sped up by the bundle's drafter.

    The text is exactly what the target alone would write (at temperature 0) or sample (above).

    Examples:

      fleetdraft generate --prompt "def parse(self, text):"

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
    pair = _open(bundle, target, threads, adapter, paths).pair
    check_lengths([Prompt(text=prompt, task="", where="--prompt")], pair.target_codec, pair.target.limit)
    with _remembered(pair, ngrams):
        if as_json:
            print(json.dumps(_generation_json(pair, prompt, options), ensure_ascii=False))
            return
        sys.stdout.write(prompt)
        try:
            for piece in pair.drafted.stream(prompt, options, _alarm(pair, options)):
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            sys.stdout.write("\n")  # an interrupted text ends its line too


def _alarm(pair: Pair, options: Options) -> AcceptanceAlarm:
    """Says on stderr, once, that hardly anything is accepted, and why."""
    return AcceptanceAlarm(pair.paths, options.sampling.temperature, lambda line: print(line, file=sys.stderr))


def adapt(
    prompts: PromptsOption,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="ADAPTER", help="PEFT directory to write; an older adapter there is replaced."),
    ],
    bundle: BundleOption = EMBEDDED,
    target: TargetOption = None,
    adapter: AdapterOption = None,
    temperature: TemperatureOption = 0.0,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    seed: SeedOption = 0,
    passes: Annotated[int, typer.Option("--passes", min=1, help="How often to go through the prompts.")] = 1,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = AdamWConfig().learning_rate,
    steps: Annotated[
        int, typer.Option("--steps", help="Training steps after every few prompts.")
    ] = LearnerConfig().steps,
    every_prompts: Annotated[
        int, typer.Option("--every-prompts", help="Prompts between trainings.")
    ] = LearnerConfig().every_prompts,
    ngram_weight: Annotated[
        float, typer.Option("--ngram-weight", help="Lambda of the hybrid loss.")
    ] = Objective().ngram_weight,
    divergence: Annotated[
        str, typer.Option("--divergence", help=f"From the target's distribution: {', '.join(DIVERGENCES)}.")
    ] = Objective().divergence,
    threads: ThreadsOption = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
) -> None:
    """Generates prompts and lets the drafter learn online from what the target accepts.

    No text leaves the process: what is written is a LoRA adapter in PEFT format.

    Example:

      fleetdraft adapt --bundle B --target models/stories3m --prompts mine.jsonl --out my-adapter
    """
    if draft_tokens < 1:
        raise ConfigError(f"--draft-tokens is {draft_tokens}, expected at least 1: what is not drafted teaches nothing")
    check_replaceable(out, ABOUT)
    check_outside(out, located(bundle))
    check_file(json_file)
    objective = Objective(divergence=divergence, ngram_weight=ngram_weight)
    optimizer = AdamWConfig(learning_rate=learning_rate)
    learning = LearnerConfig(every_prompts=every_prompts, steps=steps, objective=objective, optimizer=optimizer)
    sampling = Sampling(temperature=temperature)
    options = Options(sampling=sampling, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, seed=seed)
    stream = read_prompts(prompts)
    opened = _open(bundle, target, threads, adapter)
    check_lengths(stream, opened.pair.target_codec, opened.pair.target.limit)
    learner = opened.pair.learner(opened.adapter, learning, seed)
    with progress("adapting", len(stream) * passes) as advance:
        counters = adapt_online(opened.pair, learner, stream * passes, options, lambda _: advance(""))
    learner.adapter.save(out, opened.bundle.base)
    if json_file is not None:
        write_json(json_file, _adaptation_json(out, learner, counters))
    print(
        f"wrote {out} after {counters.prompts} prompts and {learner.training.steps} training steps; acceptance while "
        f"learning {counters.draft_acceptance_rate:.3f}; compare 'fleetdraft eval' with and without --adapter"
    )


def _adaptation_json(out: Path, learner: OnlineLearner, counters: DraftCounters) -> dict[str, Any]:
    return {
        "schema": 1,
        "adapter": str(out),
        "digest": learner.adapter.digest,
        "prompts": counters.prompts,
        "draft_acceptance_rate": counters.draft_acceptance_rate,
        "mean_acceptance_length": counters.mean_acceptance_length,
        "training_steps": learner.training.steps,
        "losses": learner.losses,
    }


def evaluate(
    prompts: PromptsOption,
    bundle: BundleOption = EMBEDDED,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="DIR", help="As in generate, by default the first; repeat for several."),
    ] = None,
    adapter: AdapterOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    max_new_tokens: TokensOption = 64,
    draft_tokens: DraftTokensOption = 4,
    controller: ControllerOption = "fixed",
    paths: PathsOption = "full",
    seed: SeedOption = 0,
    threads: ThreadsOption = 1,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows here.")] = None,
) -> None:
    """Measures acceptance and speed per target and task: target alone and with the drafter, interleaved.

    Example:

      fleetdraft eval --bundle B --target models/stories3m --prompts test.jsonl --adapter my-adapter --json after.json
    """
    sampling = Sampling(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty
    )
    options = Options(
        sampling=sampling, max_new_tokens=max_new_tokens, draft_tokens=draft_tokens, controller=controller, seed=seed
    )
    check_file(json_file)
    by_task = _by_task(read_prompts(prompts))
    rows = []
    names: Sequence[str | None] = target or [None]
    for name in names:  # a wrong name is told before the first is measured
        Bundle.open(bundle).entry(name)
    for name in names:
        opened = _open(bundle, name, threads, adapter, paths)
        for chosen in by_task.values():
            check_lengths(chosen, opened.pair.target_codec, opened.pair.target.limit)
        for task, chosen in by_task.items():
            with progress(f"{opened.pair.name} · {task}", len(chosen)) as advance:
                measured = measure(opened.pair, chosen, options, {"drafted": opened.adapter}, lambda: advance(""))
            rows.append({"target": opened.pair.name, "task": task} | measured.to_json("drafted", options))
    if json_file is not None:
        write_json(json_file, {"schema": 1, "results": rows})
    Console().print(_table(rows))


@dataclass(frozen=True, kw_only=True)
class _Opened:
    bundle: Bundle
    pair: Pair
    adapter: LoraAdapter


def _open(path: Path, target: str | None, threads: int, adapter: Path | None, paths: str = "full") -> _Opened:
    """Opens bundle and target and puts the adapter (the bundle's initial one by default) in force."""
    bundle = Bundle.open(path)
    pair = bundle.pair(target, threads, path_kind(paths))
    in_force = bundle.adapter(adapter)
    pair.adapt(in_force)
    return _Opened(bundle=bundle, pair=pair, adapter=in_force)


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


def _generation_json(pair: Pair, prompt: str, options: Options) -> dict[str, Any]:
    generation = pair.drafted.run(prompt, options)
    counters = generation.counters
    return {
        "schema": 1,
        "target": pair.name,
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "tokens_per_s": counters.tokens_per_s,
        "draft_acceptance_rate": counters.draft_acceptance_rate,
        "mean_acceptance_length": counters.mean_acceptance_length,
        "counters": counters.to_json(),
    }


def _by_task(prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    grouped: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        grouped.setdefault(prompt.task, []).append(prompt)
    return grouped


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        title="target alone and with the drafter, same prompts, same run", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("target\ntask", overflow="fold")
    for heading in (
        "prompts",
        "acceptance\nrate",
        "mean\nlength",
        "tokens/s\nalone",
        "tokens/s\ndrafted",
        "speed-up",
        "greedy\nidentical",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(f"{row['target']}\n{row['task']}", *_figures(row))
    return table


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    identical, ties = row["greedy_identical"], row["greedy_ties"]
    return (
        str(row["prompts"]),
        f"{row['draft_acceptance_rate']:.3f}",
        f"{row['mean_acceptance_length']:.2f}",
        f"{row['baseline_tokens_per_s']:,.0f}",
        f"{row['tokens_per_s']:,.0f}",
        f"{row['speedup']:.2f}x",
        "-" if identical is None else f"{identical}" + (f" + {ties} ties" if ties else ""),
    )
