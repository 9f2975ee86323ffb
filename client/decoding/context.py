"""The drafter's view of the accepted text: the target's tokens, each spelled by its draft path. It knows no text.

The drafter reads the text cut where the target cuts it, in tokens of its own. So its context grows by the paths of the
accepted tokens and nothing is ever tokenised again: a block costs what its new tokens cost, the cache never holds
another cut of the same text, and the drafter can tell from its context which target it drafts for. Under its own
segmentation of the whole text it could not, and would forget one target while it learns another.
"""

from collections.abc import Iterable, Sequence

from ...common.spelling import Spelling
from ..runtimes.decoder import Decoder, Logits


class DraftContext:
    """Keeps a drafter's KV cache in step with a growing text."""

    def __init__(self, drafter: Decoder, spelling: Spelling) -> None:
        self._drafter, self._spelling = drafter, spelling
        self._tokens: list[int] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        """The context in drafter tokens."""
        return tuple(self._tokens)

    def begin(self, prompt: Iterable[int]) -> Logits:
        """Begins a new text.

        Args:
          prompt: target tokens.

        Returns:
          float32 (vocab,): logits of the token after the prompt.
        """
        self._tokens = self._spelling.context(prompt)
        return self._feed(known=0)

    def extend(self, accepted: Sequence[int], held: int = 0) -> Logits:
        """Appends accepted target tokens.

        Args:
          accepted: target tokens.
          held: how many drafter tokens of their spelling the cache already holds behind the old context.

        Returns:
          float32 (vocab,): logits of the token after the new context.
        """
        known = len(self._tokens) + held
        self._tokens += (d for token in accepted for d in self._spelling(token))
        return self._feed(known)

    def _feed(self, known: int) -> Logits:
        """Scores what the cache does not hold, at least one token."""
        if len(self._tokens) > self._drafter.limit:
            # The drafter's context is shorter than the text: it goes on with the newest half.
            self._tokens = self._tokens[-max(1, self._drafter.limit // 2) :]
            known = 0
        # Keys of an adapter that is no longer in force are made anew here, between two blocks, and nowhere else.
        known = 0 if self._drafter.stale else max(0, min(known, self._drafter.length, len(self._tokens) - 1))
        self._drafter.rewind(known)
        return self._drafter.score(self._tokens[known:], 1).reshape(-1)
