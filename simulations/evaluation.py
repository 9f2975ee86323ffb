"""The final measurement: each client's held-out prompts, before and after the fleet's training, as rows of a report.

A target is measured as shipped and, where the experiment asks for it, widened to the cost of a larger model. It knows
no federation and no page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..client.bundle import Bundle
from ..client.measurement import Measurement, measure
from ..client.pair import Pair
from ..client.prompts import Prompt, read_prompts
from ..common.lora import LoraAdapter
from ..common.progress import progress
from ..common.shape import DecoderShape
from .experiment import ClientTable, Experiment
from .results import ClientRow, FamilyRow, Figures, WidenedTarget
from .widen import widened_decoder, widened_shape

BEFORE, AFTER = "before", "after"

Measured = Mapping[str, Measurement]
"""Held-out figures by client name."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out prompts of an experiment's clients.

    adapters: what to compare, named ``BEFORE`` and ``AFTER``. threads: ONNX Runtime threads of a target; the drafter
    runs on one.
    """

    experiment: Experiment
    bundle: Bundle
    adapters: Mapping[str, LoraAdapter]
    threads: int

    def rows(self) -> tuple[tuple[FamilyRow, ...], tuple[ClientRow, ...]]:
        """Measures every client, target after target so that one widened model is in memory at a time.

        Returns:
          One row per target in the order of first appearance, and one per client in the experiment's order.
        """
        families: list[FamilyRow] = []
        clients: dict[str, ClientRow] = {}
        with progress("measuring", self._generations()) as advance:
            for target in dict.fromkeys(client.target for client in self.experiment.clients):
                pair = self.bundle.pair(target, self.threads)
                shipped = self._measure(pair, target, advance, "")
                widened = self._widened(pair, target, advance) if self.experiment.widen_to else None
                families.append(self._family_row(pair, target, shipped, widened))
                clients |= {c.name: _client_row(c, pair.family, shipped[c.name]) for c in self._clients(target)}
        return tuple(families), tuple(clients[client.name] for client in self.experiment.clients)

    def _clients(self, target: str) -> Sequence[ClientTable]:
        return [client for client in self.experiment.clients if client.target == target]

    def _prompts(self, client: ClientTable) -> Sequence[Prompt]:
        return read_prompts(client.held_out)[: self.experiment.held_out_prompts]

    def _generations(self) -> int:
        return (2 if self.experiment.widen_to else 1) * sum(len(self._prompts(c)) for c in self.experiment.clients)

    def _measure(self, pair: Pair, target: str, advance: Callable[[str], None], size: str) -> Measured:
        options = self.experiment.generation.options(self.experiment.seed)
        return {
            client.name: measure(
                pair, self._prompts(client), options, self.adapters, partial(advance, client.name + size)
            )
            for client in self._clients(target)
        }

    def _widened(self, pair: Pair, target: str, advance: Callable[[str], None]) -> WidenedTarget:
        shape = self.bundle.entry(target).shape
        wide = widened_shape(shape, self.experiment.widen_to)
        decoder = widened_decoder(self.bundle.target_weights(target), shape, wide, self.threads)
        total = _total(self._measure(replace(pair, target=decoder), target, advance, ", widened"))
        return WidenedTarget(
            parameters=_parameters(wide),
            before=_figures(total, BEFORE),
            after=_figures(total, AFTER),
            greedy_identical=self._greedy(total),
        )

    def _family_row(self, pair: Pair, target: str, shipped: Measured, widened: WidenedTarget | None) -> FamilyRow:
        total, shape = _total(shipped), self.bundle.entry(target).shape
        drafter, own = pair.drafter.codec.vocabulary, pair.target_codec.vocabulary
        return FamilyRow(
            family=pair.family,
            target=pair.name,
            parameters=_parameters(shape),
            vocab_size=shape.vocab_size,
            relation="same vocabulary" if own.token_bytes == drafter.token_bytes else "cross-vocabulary",
            prompts=total.alone.prompts,
            before=_figures(total, BEFORE),
            after=_figures(total, AFTER),
            greedy_identical=self._greedy(total),
            widened=widened,
        )

    def _greedy(self, total: Measurement) -> str:
        return str(total.drafted[AFTER].greedy) if self.experiment.generation.temperature == 0 else "-"


def _parameters(shape: DecoderShape) -> int:
    return sum(math.prod(size) for size in shape.weights.values())


def _total(measured: Measured) -> Measurement:
    first, *others = measured.values()
    return sum(others, first)


def _figures(total: Measurement, name: str) -> Figures:
    counters = total.drafted[name].counters
    return Figures(
        draft_acceptance_rate=counters.draft_acceptance_rate,
        mean_acceptance_length=counters.mean_acceptance_length,
        tokens_per_s=counters.tokens_per_s,
        baseline_tokens_per_s=total.alone.tokens_per_s,
    )


def _client_row(client: ClientTable, family: str, measured: Measurement) -> ClientRow:
    rates = {name: drafted.counters.draft_acceptance_rate for name, drafted in measured.drafted.items()}
    return ClientRow(
        client=client.name,
        family=family,
        task=read_prompts(client.held_out)[0].task,
        acceptance_before=rates[BEFORE],
        acceptance_after=rates[AFTER],
        speedup_before=measured.speedup(BEFORE),
        speedup_after=measured.speedup(AFTER),
    )
