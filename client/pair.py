"""One target with one drafter, ready to generate, measure and learn. It knows no files; ``bundle.py`` opens them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..common.lora import LoraAdapter
from .context import Spelling
from .decoder import Decoder
from .generation import DrafterSide, Generator
from .learner import LearnerConfig, OnlineLearner
from .lesson import LessonWriter
from .onnx_decoder import OnnxDecoder
from .runtime import BoundWeights
from .text import TextCodec
from .trainer import TrainStep
from .trie import Trie


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """The bundle's drafter: its decoder, tokenizer, train graph and the weights both graphs share."""

    decoder: OnnxDecoder
    codec: TextCodec
    train_graph: Path
    weights: BoundWeights
    threads: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A target and the drafter that serves it, joined by the trie of draft paths."""

    name: str
    family: str
    """Name of the target's vocabulary; figures are reported per family."""
    target: Decoder
    target_codec: TextCodec
    drafter: Drafter
    trie: Trie

    @cached_property
    def spelling(self) -> Spelling:
        """The target's tokens in drafter tokens."""
        return Spelling(self.target_codec.vocabulary, self.drafter.codec.vocabulary, self.trie)

    @cached_property
    def alone(self) -> Generator:
        """The target without a drafter."""
        return Generator(self.target, self.target_codec)

    @cached_property
    def drafted(self) -> Generator:
        """The target with the drafter and the adapter in force."""
        side = DrafterSide(decoder=self.drafter.decoder, spelling=self.spelling, trie=self.trie)
        return Generator(self.target, self.target_codec, side)

    def adapt(self, adapter: LoraAdapter) -> None:
        """Puts ``adapter`` in force from the next token on."""
        self.drafter.decoder.adapt(adapter.arrays)

    def learner(self, adapter: LoraAdapter, config: LearnerConfig, seed: int) -> OnlineLearner:
        """An online learner that starts from ``adapter`` and puts every improvement in force."""
        self.adapt(adapter)
        drafter = self.drafter
        return OnlineLearner(
            step=TrainStep(drafter.train_graph, drafter.weights, config.loss, drafter.threads),
            writer=LessonWriter(self.spelling, self.trie, config.projection),
            adapter=adapter,
            config=config,
            seed=seed,
            on_change=self.adapt,
        )
