"""One device's life in a process of its own: import, open, decode, learn. Prints what each stage took as JSON.

It imports nothing that the base install has not, so that it measures a device and not a workstation. ``device.py`` runs
it and shows what it found.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from .memory import peak_bytes


def probe(bundle: str, target: str | None, threads: int, prompts: int, new_tokens: int) -> dict[str, Any]:
    """Lives one life.

    Args:
      bundle, target: as for ``Bundle.open`` and ``Bundle.pair``.
      threads: of the target.
      prompts, new_tokens: how many texts to generate, and again to learn from, and their length in target tokens.

    Returns:
      Seconds of ``import_s``, ``open_s`` (from the files to a pair that can draft), ``first_text_s``; peak resident
      bytes after each stage, ``imported_bytes``, ``opened_bytes``, ``decoded_bytes`` and ``learned_bytes``.
    """
    import_s, _ = _timed(lambda: __import__("fleetdraft.client.bundle"))
    from fleetdraft.client.bundle import Bundle
    from fleetdraft.client.decoding.options import Options

    found = {"import_s": import_s, "imported_bytes": peak_bytes()}
    found["open_s"], (opened, pair) = _timed(lambda: _opened(Bundle.open(Path(bundle)), target, threads))
    found["opened_bytes"] = peak_bytes()
    texts = [f"Question {number}: how does a device learn to draft?\nAnswer:" for number in range(prompts)]
    options = Options(max_new_tokens=new_tokens)
    found["first_text_s"], _ = _timed(lambda: pair.drafted.run(texts[0], options))
    for text in texts[1:]:
        pair.drafted.run(text, options)
    found["decoded_bytes"] = peak_bytes()
    _learn(pair, opened.adapter(), texts, options)
    found["learned_bytes"] = peak_bytes()
    found["torch_loaded"] = "torch" in sys.modules
    return found


def _opened(bundle: Any, target: str | None, threads: int) -> tuple[Any, Any]:
    return bundle, bundle.pair(target, threads)


def _learn(pair: Any, adapter: Any, texts: list[str], options: Any) -> None:
    from fleetdraft.client.learning.learner import LearnerConfig
    from fleetdraft.client.online.adaptation import adapt_online
    from fleetdraft.client.prompts import Prompt

    learner = pair.learner(adapter, LearnerConfig(), seed=0)
    adapt_online(pair, learner, [Prompt(text=text, task="probe") for text in texts], options)


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = perf_counter()
    value = action()
    return perf_counter() - start, value


if __name__ == "__main__":
    print(json.dumps(probe(**json.loads(sys.argv[1]))))
