"""Text to tokens and back, byte for byte, on top of a ``tokenizer.json``. It knows no model."""

import codecs
from pathlib import Path

from tokenizers import Tokenizer

from ..common.errors import ModelError
from ..common.vocabulary import Vocabulary


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

    def prompt_tokens(self, text: str) -> list[int]:
        """Tokens of a text that starts a context, with the special tokens that the tokenizer's own rules add."""
        tokens = list(self._tokenizer.encode(text).ids)
        bos = self.vocabulary.bos
        return tokens or ([bos] if bos is not None else [])

    def plain_tokens(self, text: str) -> list[int]:
        """Tokens of a text by the tokenizer's own rules, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


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
