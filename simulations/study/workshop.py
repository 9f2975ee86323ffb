"""Runs arms: opens models once per process, lets a method learn, measures it. It knows no other arm and no page."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ...client.bundle import Bundle
from ...client.learning.learner import OnlineLearner
from ...client.measurement import measure
from ...client.online.adaptation import adapt_online
from ...client.pair import Pair
from ...client.prompts import Prompt, check_lengths
from ...common.lora import LoraAdapter
from ...common.metrics import DraftCounters
from ...export.bundle import BundleRecipe, build_bundle
from ..widen import widened_decoder, widened_shape
from .arm import MEASURING_SEED, Arm, ArmResult, Moment
from .method import Method, learner_config
from .plan import Segment, Study

BUNDLES = "bundles"
"""What a study builds, below its folder."""
_LAST_STEPS = 20
_MEASURED = "drafted"


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """A study's models and prompts, below ``folder``; each is opened when it is first asked for, and kept."""

    study: Study
    folder: Path

    def build(self) -> None:
        """Builds the bundles that are not there yet, one for each rank and alpha."""
        for method in self._adapters:
            if not self._bundle_at(method).is_dir():
                targets = [target.directory for target in self.study.targets]
                recipe = BundleRecipe(rank=method.rank, alpha=method.lora_alpha)
                build_bundle(self.study.drafter, targets, self._bundle_at(method), recipe)

    def check(self) -> None:
        """Returns if every prompt fits into every target's context.

        Raises:
          UserError: one does not, or a task's files cannot be read.
        """
        bundle = self._bundle(next(iter(self._adapters)))
        for target in self.study.targets:
            codec, limit = bundle.codec(str(target.directory)), bundle.entry(str(target.directory)).shape.context_limit
            for train, unseen in self._prompts.values():
                check_lengths([*train, *unseen[: self.study.unseen_prompts]], codec, limit)
            if self.study.widen_to:
                widened_shape(bundle.entry(str(target.directory)).shape, self.study.widen_to)

    def shortages(self) -> tuple[str, ...]:
        """In a line each: tasks that have fewer prompts than the study asks for.

        Raises:
          UserError: a task's files cannot be read.
        """
        if self.study.segments:
            return tuple(
                filter(None, (self._repeated(stream, task) for stream in self.study.streams for task in self._prompts))
            )
        asked = (("training", self.study.train_prompts), ("unseen", self.study.unseen_prompts))
        return tuple(
            f"{task} has {len(held)} {what} prompts, not {count}: all of them are used"
            for task, parts in self._prompts.items()
            for (what, count), held in zip(asked, parts, strict=True)
            if len(held) < count
        )

    def _repeated(self, stream: str, task: str) -> str:
        """That a stream comes to a task's first prompts again; nothing where it does not."""
        held = len(self._prompts[task][0])
        asked = sum(each.prompts for each in self.study.segments if (each.stream, each.task) == (stream, task))
        return f"{task} has {held} prompts, not {asked}: {stream} comes to the first again" if held < asked else ""

    def run(self, arm: Arm) -> ArmResult:
        """Does one arm from the initial adapter of its seed."""
        began, began_cpu = time.perf_counter(), time.process_time()
        result = self._stream(arm) if self.study.segments else self._cell(arm)
        return replace(result, seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - began_cpu)

    def _cell(self, arm: Arm) -> ArmResult:
        """Learns on the training prompts if the method does, then measures the unseen ones."""
        bundle, pair = self._bundle(arm.method), self._pair(arm.method, arm.target)
        adapter, learning = self._initial(arm), DraftCounters()
        result = ArmResult(key=arm.key, counters=learning)
        pair.adapt(adapter)
        if arm.method.learns:
            options = self.study.options(arm.method, arm.temperature, arm.seed)
            learner = pair.learner(adapter, learner_config(arm.method), arm.seed)
            learning = adapt_online(pair, learner, self._drawn(arm.task, arm.seed, self.study.train_prompts), options)
            result = replace(result, learning=learning, steps=learner.training.steps, loss=_last(learner))
            adapter = learner.adapter
            if self.study.keep_adapters:
                adapter.save(self.folder / "adapters" / arm.key, bundle.base)
        counters, alone = self._measured(arm, pair, adapter)
        return replace(result, counters=counters, alone_tokens_per_s=alone)

    def _measured(self, arm: Arm, pair: Pair, adapter: LoraAdapter) -> tuple[DraftCounters, float]:
        """(counters on the unseen prompts, tokens per second of the target alone or 0)."""
        prompts = self._prompts[arm.task][1][: self.study.unseen_prompts]
        options = self.study.options(arm.method, arm.temperature, MEASURING_SEED)
        if self.study.speed:
            found = measure(self._widened(arm, pair), prompts, options, {_MEASURED: adapter})
            return found.drafted[_MEASURED].counters, found.alone.tokens_per_s
        runs = (pair.drafted.run(p.text, replace(options, seed=seed)).counters for seed, p in enumerate(prompts))
        return sum(runs, DraftCounters()), 0.0

    def _widened(self, arm: Arm, pair: Pair) -> Pair:
        if not self.study.widen_to:
            return pair
        bundle, name = self._bundle(arm.method), str(self.study.target(arm.target).directory)
        shape = bundle.entry(name).shape
        wide = widened_shape(shape, self.study.widen_to)
        widened = replace(pair, target=widened_decoder(bundle.target_weights(name), shape, wide, 1))
        if (heads := pair.controllers.to_bytes()) is not None:  # costs are measured anew, what is likely stays
            widened.controllers.restore_bytes(heads)
        return widened

    def _stream(self, arm: Arm) -> ArmResult:
        """Goes through the segments; the adapter stays, and so does what was learned with a pair as long as it lasts.

        What a pair holds (n-grams) is kept for when its target comes back.
        """
        adapter, moments, total, steps = self._initial(arm), list[Moment](), DraftCounters(), 0
        segments = [segment for segment in self.study.segments if segment.stream == arm.task]
        pairs = {name: self._pair(arm.method, name) for name in dict.fromkeys(s.target for s in segments)}
        learner: OnlineLearner | None = None
        for number, (segment, prompts) in enumerate(zip(segments, self._of_stream(segments, arm.seed), strict=True)):
            pair = pairs[segment.target]
            if number == 0 or segment.target != segments[number - 1].target:
                steps += learner.training.steps if learner else 0
                adapter = learner.adapter if learner else adapter
                learner = pair.learner(adapter, learner_config(arm.method), arm.seed) if arm.method.learns else None
                pair.adapt(adapter)
            for counters in self._texts(arm, pair, learner, prompts, first=len(moments)):
                moments.append(_moment(number, counters))
                total += counters
        steps += learner.training.steps if learner else 0
        return ArmResult(key=arm.key, counters=total, steps=steps, moments=tuple(moments))

    def _texts(
        self, arm: Arm, pair: Pair, learner: OnlineLearner | None, prompts: Sequence[Prompt], first: int
    ) -> list[DraftCounters]:
        """Counters of each prompt, the first with the seed ``first`` after the arm's."""
        options = self.study.options(arm.method, arm.temperature, arm.seed + first)
        if learner is None:
            seeded = enumerate(prompts, options.seed)
            return [pair.drafted.run(p.text, replace(options, seed=seed)).counters for seed, p in seeded]
        found = list[DraftCounters]()
        adapt_online(pair, learner, prompts, options, found.append)
        return found

    def _of_stream(self, segments: Sequence[Segment], seed: int) -> list[list[Prompt]]:
        """The prompts of each segment; a task that comes back goes on with its next ones, in the end from the first."""
        taken: dict[str, int] = {}
        chosen = []
        for segment in segments:
            order = self._drawn(segment.task, seed, None)
            first = taken.get(segment.task, 0)
            chosen.append([order[i % len(order)] for i in range(first, first + segment.prompts)])
            taken[segment.task] = first + segment.prompts
        return chosen

    def _drawn(self, task: str, seed: int, count: int | None) -> list[Prompt]:
        """Training prompts in a seed's order, which is the same for every method and target."""
        train = self._prompts[task][0]
        order = np.random.default_rng([seed, *task.encode()]).permutation(len(train))
        return [train[index] for index in order[:count]]

    def _initial(self, arm: Arm) -> LoraAdapter:
        """An adapter that changes nothing, with the first factors of the arm's seed."""
        return self._bundle(arm.method).manifest.layout.initial(arm.seed)

    def _pair(self, method: Method, target: str) -> Pair:
        return self._bundle(method).pair(str(self.study.target(target).directory), paths=method.path_kind)

    @cached_property
    def _adapters(self) -> tuple[Method, ...]:
        """One method of each rank and alpha."""
        untrained = self.study.methods[0].untrained(self.study.least_rank)
        return tuple({(m.rank, m.lora_alpha): m for m in (*self.study.methods, untrained)}.values())

    @cached_property
    def _prompts(self) -> dict[str, tuple[list[Prompt], list[Prompt]]]:
        return {task.name: task.prompts() for task in self.study.tasks}

    @cached_property
    def _open(self) -> dict[Path, Bundle]:
        return {}

    def _bundle(self, method: Method) -> Bundle:
        path = self._bundle_at(method)
        if path not in self._open:
            self._open[path] = Bundle.open(path)
        return self._open[path]

    def _bundle_at(self, method: Method) -> Path:
        return self.folder / BUNDLES / f"rank{method.rank}-alpha{method.lora_alpha:g}"


def _moment(segment: int, counters: DraftCounters) -> Moment:
    return Moment(segment=segment, drafted=counters.drafted, accepted=counters.accepted, blocks=counters.blocks)


def _last(learner: OnlineLearner) -> float:
    """Mean loss of the newest steps; 0 where there was none."""
    newest = learner.losses[-_LAST_STEPS:]
    return sum(newest) / len(newest) if newest else 0.0
