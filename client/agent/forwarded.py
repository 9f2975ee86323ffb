"""A decoder that is another one, but for what a class over it changes. It scores nothing itself."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..runtimes.decoder import Decoder, Hidden, Logits


class ForwardedDecoder(ABC):
    """See ``Decoder``."""

    @property
    @abstractmethod
    def _decoder(self) -> Decoder:
        """The other one, now."""

    @property
    def vocab_size(self) -> int:
        return self._decoder.vocab_size

    @property
    def limit(self) -> int:
        return self._decoder.limit

    @property
    def length(self) -> int:
        return self._decoder.length

    @property
    def stale(self) -> bool:
        return self._decoder.stale

    @property
    def hidden(self) -> Hidden:
        return self._decoder.hidden

    def score(self, tokens: Sequence[int], kept: int | None = None) -> Logits:
        """See ``Decoder.score``."""
        return self._decoder.score(tokens, kept)

    def rewind(self, length: int) -> None:
        """See ``Decoder.rewind``."""
        self._decoder.rewind(length)
