"""One target with one drafter, ready to generate, measure and learn. It knows no files; ``bundle.py`` opens them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..common.lora import LoraAdapter
from ..common.spelling import Spelling
from .decoding.generation import Generator
from .decoding.steps import DrafterSide
from .learning.learner import LearnerConfig, OnlineLearner
from .learning.lesson_writer import LessonWriter
from .learning.schedule import PLANS
from .learning.trainer import TrainStep
from .pacing.controllers import Controllers
from .runtimes.decoder import Decoder
from .runtimes.onnx_decoder import OnnxDecoder
from .runtimes.onnx_model import OnnxModel
from .runtimes.onnx_session import BoundWeights
from .spelling.paths import DraftPaths
from .spelling.text import TextCodec
from .spelling.tokenizer_pair import TokenizerPair
from .spelling.trie import Trie


@dataclass(frozen=True, kw_only=True)
class Drafter:
    """One context of a bundle's drafter. All of the bundle's drafters share the model, and so the adapter in force."""

    model: OnnxModel
    codec: TextCodec
    train_graph: Path
    weights: BoundWeights
    """Frozen; the train graph is opened over them."""

    @cached_property
    def decoder(self) -> OnnxDecoder:
        """This drafter's own context; ``dataclasses.replace`` gives a drafter with another."""
        return OnnxDecoder(self.model, with_hidden=self.model.hidden_size > 0)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A target and the drafter that serves it, joined by the trie of draft paths. One text at a time.

    Both contexts are the pair's own, so pairs of one bundle can be used in turns, token by token, or each in a thread
    of its own; models, weights and the adapter in force are shared.
    """

    name: str
    family: str
    """Name of the target's vocabulary; figures are reported per family."""
    target: Decoder
    drafter: Drafter
    tokenizers: TokenizerPair
    paths: DraftPaths
    """Which of the target's tokens may be drafted."""

    @property
    def target_codec(self) -> TextCodec:
        """The target's tokenizer."""
        return self.tokenizers.target

    @property
    def trie(self) -> Trie:
        """The canonical paths of all target tokens, drafted or not."""
        return self.tokenizers.trie

    @cached_property
    def spelling(self) -> Spelling:
        """The target's tokens in drafter tokens."""
        return Spelling(self.target_codec.vocabulary, self.drafter.codec.vocabulary, self.paths)

    @cached_property
    def controllers(self) -> Controllers:
        """What sets the lengths of this pair's drafts; ``dataclasses.replace`` gives a pair that begins anew."""
        return Controllers(self.drafter.model.hidden_size)

    @cached_property
    def alone(self) -> Generator:
        """The target without a drafter."""
        return self.drafted.alone

    @cached_property
    def drafted(self) -> Generator:
        """The target with the drafter and the adapter in force."""
        side = DrafterSide(decoder=self.drafter.decoder, spelling=self.spelling, paths=self.paths)
        return Generator(self.target, self.target_codec, side, paces=self.controllers)

    def adapt(self, adapter: LoraAdapter) -> None:
        """Puts ``adapter`` in force for all pairs of the bundle, each from its next block on."""
        self.drafter.model.adapt(adapter)

    def train_step(self) -> TrainStep:
        """A training step of the drafter, not open yet."""
        drafter = self.drafter
        return TrainStep(drafter.train_graph, drafter.weights, drafter.model.threads)

    def learner(self, adapter: LoraAdapter, config: LearnerConfig, seed: int) -> OnlineLearner:
        """An online learner that starts from ``adapter`` and puts every improvement in force.

        Where the schedule says when the acceptance head is trained, the learner does it, and the head's pace does not.
        """
        self.adapt(adapter)
        plan = PLANS[config.schedule]
        trains_head = plan.head_with_lora or plan.head_between
        self.controllers.trains_head = not trains_head
        return OnlineLearner(
            step=self.train_step(),
            writer=self.lesson_writer(config),
            adapter=adapter,
            config=config,
            seed=seed,
            on_change=self.adapt,
            head=self.controllers if trains_head else None,
        )

    def lesson_writer(self, config: LearnerConfig) -> LessonWriter:
        """Writes lessons of this pair as a learner's configuration says."""
        return LessonWriter(
            self.spelling, self.trie, config.projection, config.teacher_width, config.positions, config.rejected
        )
