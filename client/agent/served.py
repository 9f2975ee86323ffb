"""The targets of an agent, each with a pool of contexts over one model. It writes no text."""

import contextlib
import threading
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

from ...common.bundle import BundleTarget
from ...common.errors import ConfigError
from ..bundle import Bundle
from ..pair import Pair
from ..spelling.text import TextCodec
from ..spelling.tokenizer_pair import TokenizerPair
from ..spelling.trie_cache import default_directory
from .learning import SwitchedDecoder
from .refusal import NotNow


@dataclass(frozen=True)
class Context:
    """A pair of its own, for one text at a time. number: of those of its target, from 0."""

    number: int
    pair: Pair
    target: SwitchedDecoder
    """The pair's."""


class Served:
    """One target.

    Args:
      pair: opened for it; each context is like it. native: whether its target has weights.
    """

    def __init__(self, bundle: Bundle, path: str, threads: int, weights: bool = True) -> None:
        self._bundle, self._path, self._threads, self.native = bundle, path, threads, weights
        self._idle, self._lock = list[Context](), threading.Lock()
        self._numbers = count()

    @cached_property
    def _first(self) -> Pair:
        return self._bundle.pair(self._path, self._threads) if self.native else self._without_weights()

    def _without_weights(self) -> Pair:
        """The tokenizers joined, and a target that is somewhere else."""
        entry = _entry(self._bundle, self._path)
        codec = TextCodec(self._bundle.directory / "targets" / entry.name, entry.shape.vocab_size)
        tokenizers = TokenizerPair(codec, self._bundle.drafter.codec, default_directory())
        return Pair(
            name=entry.name,
            family=entry.family,
            target=SwitchedDecoder(None, entry.shape.vocab_size),
            drafter=self._bundle.drafter,
            tokenizers=tokenizers,
            paths=tokenizers.paths("full"),
        )

    @property
    def name(self) -> str:
        return self._first.name

    @property
    def family(self) -> str:
        return self._first.family

    @property
    def pair(self) -> Pair:
        """What all contexts share; its own are never used."""
        return self._first

    def context(self) -> Context:
        """A new context; keys and values are allocated by its first text."""
        if self.native:
            pair = self._bundle.pair(self._path, self._threads)
            switched = SwitchedDecoder(pair.target, pair.target.vocab_size)
        else:
            pair = self._first
            switched = SwitchedDecoder(None, pair.target.vocab_size)
        return Context(next(self._numbers), replace(pair, target=switched, drafter=replace(pair.drafter)), switched)

    @contextlib.contextmanager
    def lend(self) -> Iterator[Context]:
        """A context that nobody else has, the oldest of those that are free; kept for the next text afterwards.

        So one text after the other is written on the same one.
        """
        with self._lock:
            context = self._idle.pop() if self._idle else None
        context = context or self.context()
        try:
            yield context
        finally:
            with self._lock:
                insort(self._idle, context, key=lambda each: -each.number)


class Targets:
    """All targets by name: those of the settings, and for a program's own target any tokenizer of the bundle.

    Args:
      paths: of the settings, the one that teaches first; a name in the bundle or a model directory each.

    Raises:
      UserError: one that the bundle does not know.
    """

    def __init__(self, bundle: Bundle, paths: list[str], threads: int) -> None:
        self._bundle, self._lock = bundle, threading.Lock()
        self._served = dict[str, Served]()
        for path in paths:
            entry = _entry(bundle, path)
            weights = Path(path).is_dir() or entry.self_contained
            self._served.setdefault(entry.name, Served(bundle, path, threads, weights))
        self.first = next(iter(self._served.values()))

    def __iter__(self) -> Iterator[Served]:
        with self._lock:
            return iter(list(self._served.values()))

    def named(self, name: str, remote: bool) -> Served:
        """The target of that name, the first for an empty one.

        Args:
          remote: whether a program runs it.

        Raises:
          ConfigError: there is none.
          NotNow: the agent has no weights of it.
        """
        with self._lock:
            if name and name not in self._served and remote and name in self._known():
                self._served[name] = Served(self._bundle, name, 1, weights=False)
            served = self._served.get(name) if name else self.first
        if served is None:
            known = self._known() if remote else list(self._served)
            raise ConfigError(f"target is {name[:80]!r}, expected one of {', '.join(known)}")
        if not (remote or served.native):
            raise NotNow(f"the agent has no weights of {served.name}; a program that runs it can use Feedback")
        return served

    def _known(self) -> list[str]:
        return [target.name for target in self._bundle.manifest.targets]


def _entry(bundle: Bundle, path: str) -> BundleTarget:
    """The bundle's entry of a target, with weights or without."""
    entries = {target.name: target for target in bundle.manifest.targets}
    return entries[path] if path in entries and not Path(path).is_dir() else bundle.entry(path)
