"""``fleetdraft align``: builds a base drafter. Running a command imports torch; asking for help does not."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console

from ...common.errors import ConfigError
from ...common.losses import DIVERGENCES

if TYPE_CHECKING:
    from .training import Report

_Record = Mapping[str, Any]

align = typer.Typer(
    help="Build a base drafter: pretrain, distil, finetune.",
    epilog="Example: fleetdraft align distill --prompts train.jsonl --target models/a --out answers",
    no_args_is_help=True,
)

_Out = Annotated[Path, typer.Option("--out", help="Directory to write; the same command goes on with it.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Decides all that is drawn.")]
_Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda", help="Where it computes.")]
_Bf16 = Annotated[bool, typer.Option("--bf16/--fp32", help="Compute in bfloat16; weights stay float32.")]
_Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 takes torch's own number.")]
_SaveS = Annotated[float, typer.Option("--save-seconds", min=0, help="Seconds between two checkpoints.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the whole record as one JSON object.")]
_Fields = Annotated[
    list[str] | None, typer.Option("--field", help="A field of JSONL that holds text; repeat (default: text).")
]

_OPTION_OF = {
    "head_dim": "--hidden by --heads",
    "hidden_size": "--hidden",
    "intermediate_size": "--intermediate",
    "num_attention_heads": "--heads",
    "num_hidden_layers": "--layers",
    "num_key_value_heads": "--kv-heads",
    "peak_rate": "--learning-rate",
    "targets": "--target",
    "temperatures": "--temperature",
    "timeout_s": "--measure-seconds",
}
"""Of the fields that are not named as their options."""


@contextmanager
def _told_by_option() -> Iterator[None]:
    """A message that begins with a setting's name begins with that of its option: --learning-rate for peak_rate."""
    try:
        yield
    except ConfigError as error:
        name, space, rest = str(error).partition(" ")
        options = {each.name: each.opts[0] for each in click.get_current_context().command.params} | _OPTION_OF
        raise ConfigError(options.get(name, name) + space + rest) from error


@contextmanager
def _gone_on_with() -> Iterator[None]:
    """Says at once on a terminal that something happens, and what to do after Ctrl-C wherever it comes."""
    if Console(stderr=True).is_terminal:  # elsewhere a mistake stays one line
        _tell("loading …")
    try:
        yield
    except KeyboardInterrupt as stopped:
        _tell("interrupted; the same command goes on")
        raise typer.Exit(130) from stopped


@align.command(short_help="Train a small decoder on text.")
@_told_by_option()
@_gone_on_with()
def pretrain(
    text: Annotated[
        list[Path], typer.Option("--text", help="Text, JSONL, a directory of them, or a saved data set; repeat.")
    ],
    out: _Out,
    field: _Fields = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Directory of a tokenizer to use.")] = None,
    tokenizer_kind: Annotated[
        str,
        typer.Option(
            "--tokenizer-kind",
            metavar="spm|unigram|llama3|qwen2",
            help="Without --tokenizer: the kind of the one to train.",
        ),
    ] = "spm",
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Size of a tokenizer to train.")] = 8000,
    layers: Annotated[int, typer.Option("--layers", help="Layers of the drafter.")] = 4,
    hidden: Annotated[int, typer.Option("--hidden", help="Width of the drafter's hidden states.")] = 1024,
    intermediate: Annotated[int, typer.Option("--intermediate", help="Width of the drafter's MLP.")] = 2816,
    heads: Annotated[int, typer.Option("--heads", help="Attention heads; --hidden is a multiple of them.")] = 8,
    kv_heads: Annotated[
        int | None, typer.Option("--kv-heads", min=1, help="Key and value heads (default: as many as --heads).")
    ] = None,
    context: Annotated[int, typer.Option("--context", help="Longest text the model is exported for.")] = 2048,
    steps: Annotated[int, typer.Option("--steps", help="Training steps, of one batch each.")] = 10_000,
    batch_rows: Annotated[int, typer.Option("--batch-rows", help="Rows of text in a batch.")] = 8,
    row_tokens: Annotated[int, typer.Option("--row-tokens", help="Tokens in a row of text.")] = 256,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Learning rate at its peak.")] = 1e-3,
    warmup_steps: Annotated[int, typer.Option("--warmup-steps", help="Steps in which the rate rises.")] = 150,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of documents kept for validation.")] = 0.01,
    seed: _Seed = 0,
    device: _Device = "auto",
    bf16: _Bf16 = True,
    compile_layers: Annotated[
        bool, typer.Option("--compile", help="Compile the layers, where there is a C++ compiler.")
    ] = False,
    threads: _Threads = 0,
    save_seconds: _SaveS = 120.0,
    as_json: _Json = False,
) -> None:
    """Trains a small decoder of Llama's type on text; the default sizes are those of the paper's drafter (115 M).

    Ctrl-C saves and stops; the same command goes on.

    Example:

      fleetdraft align pretrain --text corpus/ --out drafter --layers 2 --hidden 128 --intermediate 384 --heads 4
    """
    from .model import Shape
    from .pretrain import PretrainConfig
    from .pretrain import pretrain as run
    from .schedule import Schedule

    _set_threads(threads)
    if heads < 1 or hidden % heads:
        raise typer.BadParameter(f"--hidden is {hidden}, expected a multiple of --heads, which is {heads}")
    if heads % (kv_heads or heads):
        raise typer.BadParameter(f"--heads is {heads}, expected a multiple of --kv-heads, which is {kv_heads}")
    config = PretrainConfig(
        texts=tuple(text),
        fields=tuple(field or ["text"]),
        out=out,
        tokenizer=tokenizer,
        tokenizer_kind=tokenizer_kind,
        vocab_size=vocab_size,
        context=context,
        shape=Shape(
            hidden_size=hidden,
            num_hidden_layers=layers,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            head_dim=hidden // heads,
        ),
        schedule=Schedule(
            steps=steps,
            batch_rows=batch_rows,
            row_tokens=row_tokens,
            peak_rate=learning_rate,
            warmup_steps=warmup_steps,
        ),
        held_out=held_out,
        seed=seed,
        device=device,
        bf16=bf16,
        compile=compile_layers,
        save_s=save_seconds,
    )
    _finish(
        lambda: run(config, _say, lambda: _tell_metrics(config.work)), as_json, lambda record: _trained(out, record)
    )


@align.command(short_help="Let targets answer prompts, to learn from.")
@_told_by_option()
@_gone_on_with()
def distill(
    prompts: Annotated[Path, typer.Option("--prompts", help='JSONL of {"prompt": …}.')],
    target: Annotated[list[Path], typer.Option("--target", help="Model directory; repeat for several.")],
    out: _Out,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", help="Temperature of answers; repeat (default: 0, 0.3, 0.7, 1)."),
    ] = None,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Answers are drawn from tokens that hold this probability.")
    ] = 0.95,
    width: Annotated[int, typer.Option("--width", help="Likeliest tokens kept for each answered one.")] = 32,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in target tokens.")] = 128,
    batch: Annotated[int, typer.Option("--batch", help="Answers that are generated together.")] = 16,
    shard_prompts: Annotated[
        int, typer.Option("--shard-prompts", help="Prompts in a file of answers: what an interruption can cost.")
    ] = 64,
    seed: _Seed = 0,
    device: _Device = "auto",
    half: Annotated[bool, typer.Option("--half/--full", help="Targets in bfloat16.")] = False,
    threads: _Threads = 0,
    as_json: _Json = False,
) -> None:
    """Lets targets answer prompts, and keeps what they might have said: a set that teaches any drafter.

    Ctrl-C stops; the same command goes on.

    Example:

      fleetdraft align distill --prompts train.jsonl --target models/a --target models/b --out answers
    """
    from .distill import TEMPERATURES, DistillConfig
    from .distill import distill as run
    from .generation import Sampling

    _set_threads(threads)
    config = DistillConfig(
        prompts=prompts,
        targets=tuple(target),
        out=out,
        temperatures=tuple(temperature or TEMPERATURES),
        sampling=Sampling(top_p=top_p, width=width, max_new_tokens=max_new_tokens),
        seed=seed,
        batch=batch,
        shard_prompts=shard_prompts,
        device=device,
        half=half,
    )

    def report(name: str, done: int, total: int) -> None:
        _tell(f"{name}: {done}/{total} shards")

    def asked() -> dict[str, Any]:
        return {name: value for name, value in run(config, report).items() if name != "prompts"}

    _finish(asked, as_json, lambda manifest: _answered(out, manifest))


@align.command(short_help="Teach a drafter to draft for its targets.")
@_told_by_option()
@_gone_on_with()
def finetune(
    drafter: Annotated[Path, typer.Option("--drafter", help="A pre-trained model directory.")],
    answers: Annotated[list[Path], typer.Option("--answers", help="What align distill wrote; repeat for several.")],
    target: Annotated[list[Path], typer.Option("--target", help="Model directory to measure with; repeat.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="Held-out JSONL to measure block efficiency on.")],
    out: _Out,
    text: Annotated[list[Path] | None, typer.Option("--text", help="Pre-training text to mix in; repeat.")] = None,
    field: _Fields = None,
    text_share: Annotated[
        float | None,
        typer.Option("--text-share", help="Share of rows that are text (default: 0.1 with --text, else 0)."),
    ] = None,
    divergence: Annotated[
        str,
        typer.Option("--divergence", metavar="|".join(DIVERGENCES), help="Distance from the target that is lowered."),
    ] = "forward-kl",
    ngram_weight: Annotated[
        float, typer.Option("--ngram-weight", help="Weight of the n-grams' likelihood in the loss.")
    ] = 0.2,
    dynamic_lambda: Annotated[
        bool, typer.Option("--dynamic-lambda", help="Multiply that weight by the target's probability of each.")
    ] = False,
    beta: Annotated[
        float, typer.Option("--beta", help="For jsd: near 0 it is as forward KL, near 1 as reverse.")
    ] = 0.5,
    eta: Annotated[float, typer.Option("--eta", help="For lk: how fast accepted rows turn from KL to TVD.")] = 3.0,
    samples: Annotated[int, typer.Option("--samples", help="For tvd++sampled: tokens drawn in each row.")] = 8,
    kl_steps: Annotated[int, typer.Option("--kl-steps", min=0, help="Steps on forward KL before the divergence.")] = 0,
    projection: Annotated[
        str,
        typer.Option("--projection", metavar="direct|prefix|law", help="How target tokens are seen in drafter tokens."),
    ] = "prefix",
    width: Annotated[int, typer.Option("--width", help="Likeliest drafter tokens to learn at each position.")] = 16,
    longest: Annotated[int, typer.Option("--longest", help="Longest answer with its prompt, in drafter tokens.")] = 256,
    lora_rank: Annotated[int, typer.Option("--lora-rank", min=0, help="Rank of LoRA; 0 trains all weights.")] = 0,
    lora_alpha: Annotated[
        int | None, typer.Option("--lora-alpha", help="Alpha of LoRA (default: twice the rank).")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Training steps, of one batch each, at most.")] = 2000,
    batch_rows: Annotated[int, typer.Option("--batch-rows", help="Rows in a batch, answers and text.")] = 8,
    row_tokens: Annotated[int, typer.Option("--row-tokens", help="Tokens in a row of text.")] = 256,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", help="Learning rate at its peak (default: 1e-4 with LoRA, else 2e-5)."),
    ] = None,
    warmup_steps: Annotated[int, typer.Option("--warmup-steps", help="Steps in which the rate rises.")] = 50,
    floor: Annotated[
        float, typer.Option("--floor", help="Last learning rate as a share of the peak; 1 is constant.")
    ] = 0.05,
    eval_steps: Annotated[int, typer.Option("--eval-steps", help="Steps between two measures.")] = 200,
    patience: Annotated[int, typer.Option("--patience", help="Measures without a new best that end the run.")] = 3,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Longest text of a measure, in target tokens.")
    ] = 48,
    draft_tokens: Annotated[int, typer.Option("--draft-tokens", help="Tokens drafted at a time in a measure.")] = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="Temperature of the measure.")] = 0.0,
    measure_seconds: Annotated[
        float,
        typer.Option("--measure-seconds", help="Longest time of one measure; a longer one ends the run, to go on."),
    ] = 3600.0,
    seed: _Seed = 0,
    device: _Device = "auto",
    bf16: _Bf16 = True,
    threads: _Threads = 0,
    save_seconds: _SaveS = 120.0,
    as_json: _Json = False,
) -> None:
    """Teaches a pre-trained drafter to draft for its targets, and keeps the model of highest block efficiency.

    Ctrl-C saves and stops; the same command goes on.

    Example:

      fleetdraft align finetune --drafter drafter --answers answers --target models/a --target models/b
      --prompts heldout.jsonl --text corpus/ --divergence tvd++ --kl-steps 200 --out aligned
    """
    from ...common.objective import Objective
    from .block_efficiency import BlockEfficiency
    from .dataset import check_answered, check_unseen
    from .distill import read_prompts
    from .finetune import FinetuneConfig, Lora
    from .finetune import finetune as run
    from .schedule import Schedule

    _set_threads(threads)
    lora = None
    if lora_rank:
        lora = Lora(rank=lora_rank, alpha=2 * lora_rank if lora_alpha is None else lora_alpha)
    published_rate = 1e-4 if lora else 2e-5
    config = FinetuneConfig(
        drafter=drafter,
        answers=tuple(answers),
        out=out,
        texts=tuple(text or ()),
        fields=tuple(field or ["text"]),
        text_share=text_share if text_share is not None else 0.1 if text else 0.0,
        objective=Objective(
            divergence=divergence,
            ngram_weight=ngram_weight,
            dynamic=dynamic_lambda,
            beta=beta,
            eta=eta,
            samples=samples,
            warmup_steps=kl_steps,
        ),
        projection=projection,
        width=width,
        longest=longest,
        lora=lora,
        schedule=Schedule(
            steps=steps,
            batch_rows=batch_rows,
            row_tokens=row_tokens,
            peak_rate=published_rate if learning_rate is None else learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            floor=floor,
        ),
        eval_steps=eval_steps,
        patience=patience,
        seed=seed,
        device=device,
        bf16=bf16,
        save_s=save_seconds,
    )
    measure = BlockEfficiency(
        targets=tuple(target),
        prompts=prompts,
        tell=_tell,
        max_new_tokens=max_new_tokens,
        draft_tokens=draft_tokens,
        temperature=temperature,
        seed=seed,
        timeout_s=measure_seconds,
    )
    check_unseen(read_prompts(prompts), config.answers)
    check_answered(measure.targets, config.answers)
    config = replace(config, measured_by=measure.identity)
    _finish(
        lambda: run(config, measure, _say, _say_measured, lambda: _tell_metrics(config.work)),
        as_json,
        lambda record: _tuned(out, record),
    )


def _tell_metrics(folder: Path) -> None:
    board = f"tensorboard --logdir {folder}" if find_spec("tensorboard") else "TensorBoard is not installed"
    _tell(f"metrics: {folder / 'metrics.jsonl'} ({board})")


def _say_measured(entry: Mapping[str, Any]) -> None:
    by_name = "  ".join(f"{name} {value:.3f}" for name, value in entry["by_name"].items())
    _tell(f"step {entry['step']}: block efficiency {entry['mean']:.3f}  ({by_name})")


def _set_threads(count: int) -> None:
    import torch

    if count:
        torch.set_num_threads(count)
    torch.set_flush_denormal(True)


def _finish(run: Callable[[], _Record], as_json: bool, summary: Callable[[_Record], str]) -> None:
    """Prints a run's record, in words or as JSON; a stopped run ends as interrupted."""
    from .errors import Stopped

    try:
        record = run()
    except Stopped as stopped:
        _tell(str(stopped))
        raise typer.Exit(130) from stopped
    print(json.dumps(record, indent=2) if as_json else summary(record))


def _trained(out: Path, record: _Record) -> str:
    nats = record["validation_nats_per_token"]
    loss = "" if nats is None else f", validation loss {nats:.3f} nats per token"
    read = f"{record['steps']} steps of {record['tokens']:,} tokens in all"
    return f"{out}: {record['parameters']:,} parameters, vocabulary {record['vocab_size']}; {read}{loss}"


def _answered(out: Path, manifest: _Record) -> str:
    return "\n".join(
        f"{out / name}: {found['answers']:,} answers of {found['answered_tokens']:,} tokens "
        f"to {found['answered_prompts']:,} prompts"
        for name, found in manifest["targets"].items()
    )


def _tuned(out: Path, record: _Record) -> str:
    means = {entry["step"]: entry["mean"] for entry in record["measures"]}
    step = record["best_step"]
    if not step:
        return f"{out}: training did not raise block efficiency ({means[0]:.3f}); the pre-trained model is kept"
    return f"{out}: block efficiency {means[step]:.3f} after step {step}, {means[0]:.3f} before training"


def _say(report: "Report") -> None:
    minutes, seconds = divmod(round(report.remaining_s), 60)
    validation = "" if math.isnan(report.validation) else f"validation {report.validation:.3f}  "
    _tell(
        f"step {report.step}/{report.steps}  loss {report.loss:.3f}  {validation}rate {report.rate:.2e}  "
        f"{report.steps_per_s:.2f} steps/s  {minutes}:{seconds:02} left"
    )


def _tell(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, highlight=False, markup=False)
