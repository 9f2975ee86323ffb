"""What a decoding benchmark runs on: a pair of models, opened, and its prompts. It measures nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from ...client.bundle import Bundle
from ...client.pair import Pair
from ...client.prompts import Prompt, check_lengths, read_prompts
from ...common.embedded import EMBEDDED
from ...common.lora import LoraAdapter
from ...common.shape import DecoderShape
from ...common.weights import Weights
from ..widen import widen, widened_decoder, widened_shape

_EMBEDDED_PROMPTS = 12


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A pair in our engine, with the weights that a peer needs to run the same models.

    target_folder: of the target's tokenizer. adapter: in force in ``pair``. shape, weights: the target's, widened if it
    is. widened_from: the target's own hidden size, 0 where it is as shipped.
    """

    bundle: Bundle
    pair: Pair
    adapter: LoraAdapter
    target_folder: Path
    shape: DecoderShape
    weights: Weights
    widened_from: int = 0

    @property
    def same_vocabulary(self) -> bool:
        """Whether target and drafter have the same tokens."""
        return self.pair.target_codec.vocabulary.token_bytes == self.pair.drafter.codec.vocabulary.token_bytes

    @property
    def models(self) -> str:
        """Both models in words, for a title."""
        size = f"{_millions(self.shape)}"
        if self.widened_from:
            size += f", widened with zeros from hidden size {self.widened_from} to {self.shape.hidden_size}"
        vocabularies = "same vocabulary" if self.same_vocabulary else "other vocabulary"
        return f"{self.pair.name} ({size}) with a drafter of {_millions(self.bundle.manifest.shape)}, {vocabularies}"


def open_setting(
    path: Path, target: str | None, adapter: Path | None, threads: int, widen_to: int | None = None
) -> Setting:
    """Opens a pair.

    Args:
      path: the bundle.
      target: as in ``Bundle.pair``; by default the bundle's first target with another vocabulary than the drafter's.
      adapter: PEFT directory; by default the one that changes nothing.
      threads: ONNX Runtime threads of the target; the drafter has one, as ``Bundle`` gives it.
      widen_to: hidden size of the target, which is widened with zeros (``widen.py``).

    Raises:
      UserError: one of them is no such thing, or they do not belong together.
    """
    bundle = Bundle.open(path)
    target = target or _cross_vocabulary(bundle)
    pair, in_force, entry = bundle.pair(target, threads), bundle.adapter(adapter), bundle.entry(target)
    pair.adapt(in_force)
    setting = Setting(
        bundle=bundle,
        pair=pair,
        adapter=in_force,
        target_folder=bundle.directory / "targets" / entry.name,
        shape=entry.shape,
        weights=bundle.target_weights(target),
    )
    return setting if widen_to is None else _widened(setting, widen_to, threads)


def read_some(path: Path | None, setting: Setting, count: int | None, room: int) -> Sequence[Prompt]:
    """The first ``count`` prompts of a file, or of the bundle's own held-out ones, which take turns.

    Args:
      room: tokens that a text may add to its prompt.

    Raises:
      PromptsError: no such file, not prompts, or one that does not fit the target's context.
    """
    if path is not None:
        prompts = read_prompts(path)
    else:
        files = sorted((Bundle.open(EMBEDDED).directory / "prompts").glob("*.heldout.jsonl"))
        prompts = list(chain.from_iterable(zip(*map(read_prompts, files), strict=False)))
        count = count or _EMBEDDED_PROMPTS
    check_lengths(prompts[:count], setting.pair.target_codec, setting.pair.target.limit - room)
    return prompts[:count]


def _cross_vocabulary(bundle: Bundle) -> str:
    names = [target.name for target in bundle.manifest.targets]
    own = bundle.drafter.codec.vocabulary.token_bytes
    return next((name for name in names if bundle.codec(name).vocabulary.token_bytes != own), names[0])


def _widened(setting: Setting, hidden_size: int, threads: int) -> Setting:
    wide = widened_shape(setting.shape, hidden_size)
    decoder = widened_decoder(setting.weights, setting.shape, wide, threads)
    return replace(
        setting,
        pair=replace(setting.pair, target=decoder),
        shape=wide,
        weights=widen(setting.weights, setting.shape, wide),
        widened_from=setting.shape.hidden_size,
    )


def _millions(shape: DecoderShape) -> str:
    return f"{sum(math.prod(size) for size in shape.weights.values()) / 1e6:.1f} M"
