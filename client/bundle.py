"""Opens a bundle on a device: graphs, weights, tokenizers and tries become decoders. Nothing here needs torch."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import RLock

from ..common.bundle import BundleManifest, BundleTarget
from ..common.embedded import located
from ..common.errors import ModelError
from ..common.fusion import decode_tensors, fused, train_tensors
from ..common.lora import LoraAdapter
from ..common.weights import Weights, read_stored, read_weights
from .foreign_target import ForeignTarget
from .pair import Drafter, Pair
from .runtimes.decoder import Decoder
from .runtimes.onnx_decoder import OnnxDecoder
from .runtimes.onnx_model import OnnxModel
from .runtimes.onnx_session import bind_weights
from .runtimes.target_runtimes import ONNX, open_target, runtime_name, target_path
from .spelling.ngrams import NgramConfig
from .spelling.text import TextCodec
from .spelling.tokenizer_pair import PathKind, TokenizerPair
from .spelling.trie_cache import default_directory

_CONTEXT = 512
"""The longest context of a drafter; it slides when a text is longer."""

_OPENING = RLock()
"""Held while a model is opened, so that threads open it once. Of the module: a bundle with a lock has no pickle."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """A target in a context of its own, whatever its runtime."""

    name: str
    family: str
    context: Decoder
    tokenizers: TokenizerPair


class Bundle:
    """A drafter with what it needs for its targets.

    A model is opened on first use, shared by all pairs, and kept as long as the bundle: a further pair costs its keys
    and values only.
    """

    def __init__(self, directory: Path, manifest: BundleManifest, drafter_threads: int = 1) -> None:
        self.directory, self.manifest = directory, manifest
        self._threads = drafter_threads
        self._models: dict[tuple[Path, int], OnnxModel] = {}
        self._foreign: dict[tuple[str, str | None, int], tuple[ForeignTarget, TokenizerPair]] = {}
        self._tokenizers: dict[str, TokenizerPair] = {}

    @classmethod
    def open(cls, directory: Path) -> "Bundle":
        """Reads a bundle's manifest; ``embedded`` names the one inside the package.

        Raises:
          ModelError: not a bundle.
        """
        directory = located(directory)
        return cls(directory, BundleManifest.read(directory))

    @property
    def base(self) -> str:
        """Fingerprint of the drafter's frozen weights and tokenizer."""
        return self.manifest.base

    def adapter(self, directory: Path | None = None) -> LoraAdapter:
        """The adapter in ``directory``, by default the one that changes nothing.

        Raises:
          ModelError, FingerprintError: not an adapter, or one for another drafter.
        """
        return LoraAdapter.load(directory or self.directory / "drafter/initial", self.manifest.layout, self.base)

    @cached_property
    def drafter(self) -> Drafter:
        """The drafter, opened once; each pair has a context of its own over its model."""
        directory, shape = self.directory / "drafter", self.manifest.shape
        self._verify("drafter/")
        tensors = fused(read_stored(directory, shape), shape)
        decoded = bind_weights(decode_tensors(tensors, shape.tied))
        limit = min(shape.context_limit, _CONTEXT)
        return Drafter(
            model=OnnxModel(directory / "decode.onnx", decoded, limit, self._threads),
            codec=TextCodec(directory, shape.vocab_size),
            train_graph=directory / "train.onnx",
            weights=bind_weights(train_tensors(tensors)),
        )

    def pair(
        self,
        target: str | None = None,
        threads: int = 1,
        paths: PathKind = "full",
        ngrams: NgramConfig | None = None,
        runtime: str | None = None,
    ) -> Pair:
        """Joins a target with the drafter, in contexts of their own; opens what is not open yet.

        Args:
          target: a Hugging Face directory that the bundle was built for, or the name of a target whose weights are in
            the bundle; by default the bundle's first target. On another runtime, any model of that runtime.
          threads: threads of the target's runtime. They belong to a session, and a session packs the weights for
            its kernels, so another number is another model in memory.
          paths, ngrams: which target tokens may be drafted (``TokenizerPair.paths``).
          runtime: a name of ``RUNTIME_NAMES``; by default what the target is for.

        Raises:
          ModelError, FingerprintError: not a model, or one that this bundle does not know.
          ConfigError: no such runtime.
          MissingExtraError: the runtime is not installed.
        """
        runtime = runtime_name(runtime, target)
        with _OPENING:
            opened = self._native(target, threads) if runtime == ONNX else self._on(runtime, target, threads)
            held = opened.tokenizers.paths(paths, ngrams)
            drafter = replace(self.drafter)
        return Pair(
            name=opened.name,
            family=opened.family,
            target=opened.context,
            drafter=drafter,
            tokenizers=opened.tokenizers,
            paths=held,
        )

    def check_target(self, target: str | None = None, runtime: str | None = None) -> None:
        """Returns if there is such a target, named as in ``pair``; opens no model.

        Raises:
          UserError: there is none.
        """
        runtime = runtime_name(runtime, target)
        if runtime == ONNX:
            self.entry(target)
        else:
            target_path(runtime, target)

    def entry(self, target: str | None = None) -> BundleTarget:
        """The manifest's entry of a target, named as in ``pair``; opens no model."""
        return self._resolve(target)[0]

    def codec(self, target: str | None = None) -> TextCodec:
        """A target's tokenizer, the target named as in ``pair``; opens no model."""
        entry = self.entry(target)
        return TextCodec(self.directory / "targets" / entry.name, entry.shape.vocab_size)

    def target_weights(self, target: str | None = None) -> Weights:
        """Reads a target's weights, the target named as in ``pair``."""
        entry, weights_at = self._resolve(target)
        return read_weights(weights_at, entry.shape)

    def _resolve(self, target: str | None) -> tuple[BundleTarget, Path]:
        """(the bundle's entry, directory of the weights)."""
        if target is not None and Path(target).is_dir():
            return self.manifest.target_for(Path(target)), Path(target)
        entry = next((t for t in self.manifest.targets if target in (None, t.name)), None)
        if entry is None:
            names = ", ".join(t.name for t in self.manifest.targets)
            raise ModelError(f"no model directory {target}, expected one, or a target of the bundle: {names}")
        if not entry.self_contained:
            raise ModelError(
                f"{self.directory} does not hold the weights of '{entry.name}'; give its directory: --target DIR"
            )
        return entry, self.directory / "targets" / entry.name

    def _native(self, target: str | None, threads: int) -> "_Target":
        """A target on the bundle's own graph, in a new context."""
        entry, weights_at = self._resolve(target)
        context = OnnxDecoder(self._model(entry, weights_at.resolve(), threads))
        return _Target(name=entry.name, family=entry.family, context=context, tokenizers=self._joined(entry))

    def _on(self, runtime: str, target: str | None, threads: int) -> "_Target":
        """A target on another runtime, in a new context; its model is opened once."""
        known = {self.directory / "targets" / t.name: t.family for t in self.manifest.targets}
        if target is not None and not Path(target).exists():  # then it may be one that is in the bundle
            target = next((str(folder) for folder in known if folder.name == target), target)
        key = (runtime, target, threads)
        if key not in self._foreign:
            opened = ForeignTarget.join(target_path(runtime, target), open_target(runtime, target, threads), known)
            self._foreign[key] = opened, TokenizerPair(opened.codec, self.drafter.codec, default_directory())
        opened, tokenizers = self._foreign[key]
        return _Target(name=opened.name, family=opened.family, context=opened.model.context(), tokenizers=tokenizers)

    def _model(self, entry: BundleTarget, weights_at: Path, threads: int) -> OnnxModel:
        """A target's model, opened once."""
        if (weights_at, threads) not in self._models:
            self._verify(f"targets/{entry.name}/")
            graph = self.directory / "targets" / entry.name / "decode.onnx"
            weights = bind_weights(fused(read_weights(weights_at, entry.shape), entry.shape))
            self._models[weights_at, threads] = OnnxModel(graph, weights, entry.shape.context_limit, threads)
        return self._models[weights_at, threads]

    def _joined(self, entry: BundleTarget) -> TokenizerPair:
        """A target's tokenizer joined with the drafter's, once."""
        if entry.name not in self._tokenizers:
            codec = TextCodec(self.directory / "targets" / entry.name, entry.shape.vocab_size)
            self._tokenizers[entry.name] = TokenizerPair(codec, self.drafter.codec, default_directory())
        return self._tokenizers[entry.name]

    def _verify(self, prefix: str) -> None:
        """Compares the files below ``prefix`` with their digests in the manifest."""
        files = {name: digest for name, digest in self.manifest.files.items() if name.startswith(prefix)}
        replace(self.manifest, files=files).verify(self.directory)
