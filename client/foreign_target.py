"""A target on a runtime of its own: its model joined with the tokenizer that it was made with. It knows no drafter.

A bundle need not have been built for it. Where its tokenizer comes from:

| target      | tokenizer                                                                                   |
|-------------|---------------------------------------------------------------------------------------------|
| a directory | its own ``tokenizer.json``, or that of the bundle's target with the same file               |
| a GGUF file | that of the bundle's target which spells what the file says, else the one beside the file   |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import FingerprintError
from ..common.files import read_json, sha256_file
from ..common.vocabulary import Vocabulary
from .runtimes.target_runtimes import TargetModel
from .spelling.text import TextCodec

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class ForeignTarget:
    """family: the kind and size of its vocabulary."""

    name: str
    family: str
    model: TargetModel
    codec: TextCodec

    @classmethod
    def join(cls, path: Path, model: TargetModel, known: Mapping[Path, str]) -> "ForeignTarget":
        """Finds the tokenizer of a model.

        Args:
          path: what the user named.
          known: folders of the bundle's targets with the families of their vocabularies.

        Raises:
          ModelError: there is no tokenizer.
          FingerprintError: there is none that spells what the model's file says.
        """
        folder = _tokenizer_of(path, model, list(known))
        codec = TextCodec(folder, model.vocab_size)
        family = known.get(folder) or _family(folder, codec.vocabulary)
        return cls(name=path.resolve().name, family=family, model=model, codec=codec)


def _tokenizer_of(path: Path, model: TargetModel, known: list[Path]) -> Path:
    """The folder of a model's tokenizer."""
    beside = model.directory / _TOKENIZER
    if not model.token_bytes:
        digest = sha256_file(beside) if beside.is_file() else ""
        return next((folder for folder in known if sha256_file(folder / _TOKENIZER) == digest), model.directory)
    folders = [*known, *([model.directory] if beside.is_file() else [])]
    for folder in folders:
        if _spells(folder, model):
            return folder
    raise FingerprintError(
        f"the vocabulary in {path} is none of {', '.join(folder.name for folder in folders)}; "
        f"put the {_TOKENIZER} it was converted with beside it"
    )


def _spells(folder: Path, model: TargetModel) -> bool:
    """Whether each token that a tokenizer spells is the same bytes in the model's file."""
    spelled = TextCodec.from_directory(folder).vocabulary.token_bytes
    pairs = zip(spelled, model.token_bytes, strict=False)
    return not any(spelled[model.vocab_size :]) and all(mine in (b"", theirs) for mine, theirs in pairs)


def _family(folder: Path, vocabulary: Vocabulary) -> str:
    tokenizer = read_json(folder / _TOKENIZER)
    kind = "bbpe" if "'ByteLevel'" in str([tokenizer.get("pre_tokenizer"), tokenizer.get("decoder")]) else "spm"
    return f"{kind}-{max(set(range(vocabulary.width)) - vocabulary.padding) + 1}"
