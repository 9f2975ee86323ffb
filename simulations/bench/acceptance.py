"""Expected acceptance of the proposal law at real positions, computed exactly, beside TLI and string match.

At each position every target token's r is evaluated under ``client/decoding/law.py``, so nothing is sampled but the
choice of positions. It knows nothing of blocks and of time: for those see the other benchmarks.

| rule         | probability that the first proposal of a block is accepted                                            |
|--------------|-------------------------------------------------------------------------------------------------------|
| the law      | sum of min(p, r)                                                                                      |
| TLI          | sum of min(p, q), q the drafter's row restricted to tokens with the same bytes (arXiv 2502.05202)     |
| string match | sum of p r: the target draws for itself, and the two draws agree                                      |

TLI is measured twice: in the context that this project's drafter reads, and in the drafter's own segmentation of the
text, as transformers does. The comparison is with the better one.

Run: ``python -m fleetdraft.simulations.bench.acceptance --bundle BUNDLE --target DIR --texts FILE``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from ...client.bundle import Bundle
from ...client.decoding.chooser import RandomChooser
from ...client.decoding.context import DraftContext
from ...client.decoding.law import Law
from ...client.decoding.sampling import Probabilities, Sampling, distribution, target_probabilities, target_weights
from ...client.pair import Pair
from ...client.prompts import read_prompts
from ...client.runtimes.decoder import Decoder, Logits
from ...client.runtimes.rows import Rows
from ...client.spelling.trie import Trie
from ...common.embedded import EMBEDDED
from ...common.errors import PromptsError
from ...common.progress import progress
from ...common.spelling import Spelling
from ...common.vocabulary import Vocabulary
from .table import Row, print_rows, run, write_rows

PROGRAM = "python -m fleetdraft.simulations.bench.acceptance"
LAW, TLI, TLI_OWN, MATCH = "the law", "TLI", "TLI, its own context", "string match"
_BETWEEN_TEXTS = "<|endoftext|>"
#: Longest context of a position in target tokens: it leaves room in a drafter's context even at two tokens for one.
_LONGEST = 240
_QUICK = 8

Mask = NDArray[np.bool_]
Integers = NDArray[np.intp]


def proposal_law(law: Law, width: int) -> Probabilities:
    """r of every target token.

    Args:
      law: of one position.
      width: of the target's rows.

    Returns:
      float64 (width,), summing to at most one.
    """
    r = np.zeros(width)
    # Deep paths first: their rows hold those of the paths within them, so a call of the drafter covers a whole branch.
    for target in sorted(law.trie, key=law.trie.path, reverse=True):
        r[target] = law.probability(target)
    return r


def classes(trie: Trie, width: int, budget: int) -> dict[str, Mask]:
    """Splits the target's tokens by how a walk can propose them; every token is in exactly one class.

    Args:
      width: of the target's rows.
      budget: drafter tokens a walk may use.

    Returns:
      bool (width,) for each class.
    """
    lengths = np.array([len(trie.path(t)) for t in range(width)])
    return {
        "one drafter token": lengths == 1,
        "several, within the budget": (lengths > 1) & (lengths <= budget),
        "over the budget": lengths > max(budget, 1),
        "no path": lengths == 0,
    }


def shared_tokens(target: Vocabulary, drafter: Vocabulary) -> tuple[Integers, Integers]:
    """(target ids, drafter ids) of the tokens that spell the same bytes, and of the ends of text."""
    pairs = [(t, drafter.ids[text]) for text, t in target.ids.items() if text in drafter.ids]
    pairs += zip(target.eos, drafter.eos, strict=False)
    ids = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return ids[:, 0], ids[:, 1]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one position gave, by name: the acceptance of each rule, and the target's mass in each class."""

    acceptance: Mapping[str, float]
    mass: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Measures positions of one target with one drafter.

    own_tokens: of target tokens, what a user of the drafter alone would give it: its own segmentation of the text.
    sampling: the target's. budget: drafter tokens of the block.
    """

    target: Decoder
    drafter: Decoder
    trie: Trie
    spelling: Spelling
    shared: tuple[Integers, Integers]
    """As ``shared_tokens`` gives it."""
    own_tokens: Callable[[Sequence[int]], Sequence[int]]
    sampling: Sampling
    budget: int

    @classmethod
    def of(cls, pair: Pair, sampling: Sampling, budget: int) -> "Meter":
        """A meter of an opened pair."""
        return cls(
            target=pair.target,
            drafter=pair.drafter.decoder,
            trie=pair.trie,
            spelling=pair.spelling,
            shared=shared_tokens(pair.target_codec.vocabulary, pair.drafter.codec.vocabulary),
            own_tokens=partial(_own_tokens, pair),
            sampling=sampling,
            budget=budget,
        )

    def measure(self, tokens: Sequence[int]) -> Found:
        """Evaluates the position behind a text.

        Args:
          tokens: target tokens, at least one.
        """
        p = target_probabilities(_row_after(self.target, tokens), self.sampling)
        row = DraftContext(self.drafter, self.spelling).begin(tokens).copy()
        r = self._law(row, self.trie.node(tokens[-1]))
        own = _row_after(self.drafter, self.own_tokens(tokens)[-self.drafter.limit :])
        acceptance = {LAW: overlap(p, r), TLI: self._tli(p, row), TLI_OWN: self._tli(p, own), MATCH: float(p @ r)}
        return Found(acceptance=acceptance, mass={name: float(p[mask].sum()) for name, mask in self._classes.items()})

    @cached_property
    def _classes(self) -> dict[str, Mask]:
        return classes(self.trie, self.target.vocab_size, self.budget)

    def _law(self, root: Logits, after: int) -> Probabilities:
        law = Law(
            trie=self.trie,
            rows=Rows(self.drafter, root),
            start=(),
            after=after,
            budget=min(self.budget, self.drafter.limit - self.drafter.length),
            temperature=self.sampling.temperature,
        )
        return proposal_law(law, self.target.vocab_size)

    def _tli(self, p: Probabilities, row: Logits) -> float:
        targets, drafters = self.shared
        return overlap(p[targets], distribution(row[drafters], self.sampling.temperature)) if len(targets) else 0.0


def _own_tokens(pair: Pair, tokens: Sequence[int]) -> Sequence[int]:
    vocabulary = pair.target_codec.vocabulary
    text = vocabulary.spell(tokens).decode(errors="replace")
    own = pair.drafter.codec.prompt_tokens(text.removeprefix(" ") if vocabulary.dummy_prefix else text)
    return own or pair.spelling.start  # no text and no begin of text: as this project's context begins


def overlap(p: Probabilities, r: Probabilities) -> float:
    """Sum of min(p, r), the largest probability with which a proposal drawn from r can be accepted."""
    return float(np.minimum(p, r).sum())


def _row_after(decoder: Decoder, tokens: Sequence[int]) -> Logits:
    decoder.rewind(0)
    return decoder.score(tokens, 1).reshape(-1)


# --- positions ----------------------------------------------------------------------------------------------------


def read_texts(path: Path) -> list[str]:
    """The texts of a file: the prompts of ``.jsonl``, else plain text divided by ``<|endoftext|>``.

    Raises:
      PromptsError: the file cannot be read or holds no text.
    """
    if path.suffix == ".jsonl":
        return [prompt.text for prompt in read_prompts(path)]
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"cannot read {path}: {error}") from error
    texts = [text.strip() for text in content.split(_BETWEEN_TEXTS) if text.strip()]
    if not texts:
        raise PromptsError(f"{path} is empty, expected some text")
    return texts


def positions(
    texts: Sequence[str], pair: Pair, number: int, generated: int, sampling: Sampling, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Picks positions, one per text before any text has a second one.

    Args:
      texts: to pick from.
      number: of positions.
      generated: 0 for positions in the texts; else positions lie in as many tokens that the target draws behind them.
      sampling: of those draws.
      rng: decides texts, positions and draws.

    Yields:
      The target tokens before the position, at least one.

    Raises:
      PromptsError: no text has two tokens.
    """
    order = rng.permutation(len(texts))
    coded = [pair.target_codec.prompt_tokens(texts[i])[: _LONGEST + 1] for i in order[:number]]
    usable = [tokens for tokens in coded if len(tokens) > 1]
    if not usable:
        raise PromptsError("the texts are too short, expected one of at least two tokens")
    for i in range(number):
        tokens = usable[i % len(usable)]
        if generated:
            yield _continued(pair, tokens, int(rng.integers(generated)), sampling, RandomChooser(rng))
        else:
            yield tokens[: rng.integers(1, len(tokens))]


def _continued(pair: Pair, tokens: list[int], count: int, sampling: Sampling, chooser: RandomChooser) -> list[int]:
    """The text with up to ``count`` tokens of the target's behind it; an end of text is left out."""
    text, ends = list(tokens), pair.target_codec.vocabulary.eos
    row = _row_after(pair.target, text)
    for _ in range(min(count, pair.target.limit - len(text) - 1)):
        token = chooser.choose(target_weights(row, sampling))
        if token in ends:
            break
        text.append(token)
        row = pair.target.score((token,), 1).reshape(-1)
    return text


# --- figures ------------------------------------------------------------------------------------------------------


def rows_of(found: Sequence[Found]) -> list[Row]:
    """Means over positions with their standard errors, the law beside the better TLI and string match."""
    columns = {name: np.array([f.acceptance[name] for f in found]) for name in (LAW, TLI, TLI_OWN, MATCH)}
    best = max((TLI, TLI_OWN), key=lambda name: columns[name].mean())
    rows = [_mean(LAW, columns[LAW], best, columns[best]), _mean(LAW, columns[LAW], MATCH, columns[MATCH])]
    rows += [_mean(name, column) for name, column in columns.items() if name != LAW]
    rows += [_error(f"{name}: standard error", column) for name, column in columns.items()]
    rows += [_error(f"{LAW} / {peer}: standard error", *_ratio(columns[LAW], columns[peer])) for peer in (best, MATCH)]
    masses = {name: np.array([f.mass[name] for f in found]) for name in found[0].mass}
    rows += [Row(name=f"target's mass: {name}", value=float(m.mean()), unit="share") for name, m in masses.items()]
    return [*rows, Row(name="positions", value=len(found), unit="count")]


def _mean(name: str, column: Probabilities, peer: str | None = None, other: Probabilities | None = None) -> Row:
    peer_value = None if other is None else float(other.mean())
    return Row(name=name, value=float(column.mean()), unit="acceptance", peer=peer, peer_value=peer_value)


def _error(name: str, column: Probabilities, unit: str = "acceptance") -> Row:
    return Row(name=name, value=float(column.std(ddof=1) / np.sqrt(len(column))), unit=unit)


def _ratio(above: Probabilities, below: Probabilities) -> tuple[Probabilities, str]:
    """Values whose standard error is that of the ratio of the means, to first order; numerator and denominator vary
    together over positions, so its error is far below what theirs suggest.
    """
    mean = below.mean() or 1.0
    return (above - above.mean() / mean * below) / mean, "ratio"


def main(
    texts: Annotated[Path, typer.Option(metavar="FILE", help="Prompts (.jsonl), or plain text.")],
    bundle: Annotated[Path, typer.Option(metavar="BUNDLE", help="Bundle directory.")] = EMBEDDED,
    target: Annotated[str | None, typer.Option(metavar="DIR", help="As in fleetdraft generate.")] = None,
    number: Annotated[int, typer.Option("--positions", min=2, help="How many.")] = 120,
    budget: Annotated[int, typer.Option(min=1, help="Drafter tokens of a block.")] = 6,
    temperature: Annotated[float, typer.Option(help="Of target and drafter.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus of the target; 1 is off.")] = 1.0,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="LoRA adapter.")] = None,
    generated: Annotated[int, typer.Option(min=0, help="Positions within so many tokens drawn behind the texts.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Decides the positions.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help=f"Only {_QUICK} positions.")] = False,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
) -> None:
    """Expected acceptance at real positions, exact: the law, TLI, string match."""
    sampling = Sampling(temperature=temperature, top_p=top_p)
    opened = Bundle.open(bundle)
    pair = opened.pair(target)
    if adapter is not None:
        pair.adapt(opened.adapter(adapter))
    number = _QUICK if quick else number
    meter = Meter.of(pair, sampling, budget)
    rng, found = np.random.default_rng(seed), list[Found]()
    with progress("positions", number) as advance:
        for tokens in positions(read_texts(texts), pair, number, generated, sampling, rng):
            found.append(meter.measure(tokens))
            advance("")
    rows = rows_of(found)
    print_rows(f"{pair.name}: expected acceptance, budget {budget}, temperature {temperature:g}", rows)
    if as_json is not None:
        write_rows(as_json, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, PROGRAM))
