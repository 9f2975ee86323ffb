"""Text to tokens and back, byte for byte, on top of a ``tokenizer.json``. It knows no model."""

import codecs
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ...common.errors import ModelError
from ...common.files import read_json
from ...common.vocabulary import Vocabulary

_LONG_TEXT = 1 << 14
"""Characters, which take a tokenizer some milliseconds."""


class ReadText(str):
    """A text whose tokens are known, so that it is tokenised once, and where nobody waits for that."""

    tokens: Sequence[int] = ()


class TextCodec:
    """One model's tokenizer beside its vocabulary."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        """Reads ``directory/tokenizer.json``.

        Args:
          directory: a Hugging Face model directory.
          vocab_size: width of the model's logits, which may exceed the tokenizer's.

        Raises:
          ModelError: no tokenizer there, or one of an unknown kind.
        """
        self.vocabulary = Vocabulary.from_directory(directory, vocab_size)
        try:
            self._tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise ModelError(f"{directory}/tokenizer.json cannot be read: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path, vocab_size: int | None = None) -> "TextCodec":
        """Reads a model or tokenizer directory; by default as wide as its config says, else as its tokenizer has ids.

        Raises:
          ModelError: no tokenizer there, one of an unknown kind, or a config without ``vocab_size``.
        """
        return cls(directory, _width(directory) if vocab_size is None else vocab_size)

    def prompt_tokens(self, text: str) -> list[int]:
        """Tokens of a text that starts a context, with the special tokens that the tokenizer's own rules add."""
        if isinstance(text, ReadText):
            return list(text.tokens)
        tokens = list(self._tokenizer.encode(text).ids)
        bos = self.vocabulary.bos
        return tokens or ([bos] if bos is not None else [])

    def read(self, text: str) -> ReadText:
        """A text that starts a context, with its tokens of this tokenizer; other threads go on meanwhile."""
        known = ReadText(text)
        # Only a batch is tokenised without Python's lock; a short text is not worth the threads.
        alone = len(text) <= _LONG_TEXT
        known.tokens = self.prompt_tokens(text) if alone else self._tokenizer.encode_batch([text])[0].ids
        return known

    def plain_tokens(self, text: str) -> list[int]:
        """Tokens of a text by the tokenizer's own rules, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _width(directory: Path) -> int:
    config, tokenizer = directory / "config.json", directory / "tokenizer.json"
    if not directory.is_dir():
        raise ModelError(f"{directory} does not exist, expected a model or tokenizer directory")
    if config.is_file():
        content = read_json(config)
        width = content.get("vocab_size") if isinstance(content, dict) else None
        if not isinstance(width, int) or not 0 < width <= 1 << 22:
            raise ModelError(f"{config} has no vocab_size, expected the width of the model's logits")
        return width
    if not tokenizer.is_file():
        raise ModelError(f"{directory} holds no tokenizer.json, expected a model or tokenizer directory")
    try:
        return int(max(Tokenizer.from_file(str(tokenizer)).get_vocab().values(), default=0)) + 1
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{tokenizer} cannot be read: {error}") from error


class Utf8Stream:
    """Turns emitted bytes into text pieces that never split a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """Returns the characters that are complete after ``data``."""
        return self._decoder.decode(data)

    def close(self) -> str:
        """Returns what is left; half a character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Ends a text before the first stop string in it, and never shows a piece that may turn out to be part of one."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops, self._held = stops, ""
        self.found = False
        """Whether the text has ended."""

    def feed(self, piece: str) -> str:
        """Returns what can be shown after ``piece``."""
        if not self._stops:
            return piece
        text = self._held + piece
        starts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self.found = bool(starts)
        shown = min(starts) if starts else len(text) - self._open(text)
        self._held = "" if starts else text[shown:]
        return text[:shown]

    def close(self) -> str:
        """Returns what was held back."""
        return self._held

    def _open(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        return next((n for n in range(longest, 0, -1) if self._begins_stop(text[-n:])), 0)

    def _begins_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
