"""How one target token is spelled in drafter tokens: its canonical path. It knows no trie and no probabilities."""

from collections.abc import Callable

from .vocabulary import Vocabulary

Encode = Callable[[str], list[int]]

_LEAD = "\n"


class Speller:
    """Gives the canonical path of any target token, each computed when it is asked for.

    | target token                                     | path                                                   |
    |--------------------------------------------------|--------------------------------------------------------|
    | any, where both vocabularies are the same        | itself                                                 |
    | text                                             | the drafter tokenizer's own segmentation, mid-text     |
    | half a character, or a segmentation that differs | greedy longest match over the drafter's byte strings   |
    | bytes the drafter lacks                          | none: never proposed, still emitted by the target      |
    | same bytes as another id                         | only one id gets the path (``Vocabulary.ids``)         |
    | eos                                              | the drafter's eos; of several, first to first          |
    | other special tokens                             | none                                                   |

    Guarantees:
      - No two target tokens have the same path.

    Args:
      encode: the drafter tokenizer, adding no special tokens.
    """

    def __init__(self, target: Vocabulary, drafter: Vocabulary, encode: Encode) -> None:
        self._target, self._drafter, self._encode = target, drafter, encode
        self._ends = dict(zip(target.eos, drafter.eos, strict=False))
        # The same vocabulary maps by id: a token that its own tokenizer never produces must still map to itself.
        self._same = target.token_bytes == drafter.token_bytes
        self._space = b" " if drafter.dummy_prefix else b""

    def __call__(self, token: int) -> tuple[int, ...]:
        """The path of a target id below the vocabulary's width, ``()`` where it has none."""
        if token in self._ends:
            return (self._ends[token],)
        text = self._target.token_bytes[token]
        if self._target.ids.get(text) != token:
            return ()
        return (self._drafter.ids[text],) if self._same else self._spell(text)

    def _spell(self, text: bytes) -> tuple[int, ...]:
        try:
            characters = text.decode()
        except UnicodeDecodeError:
            return self._drafter.longest_match(text)
        path = self._segmented(_LEAD, characters, text) or self._segmented("", characters, text)
        return path or self._drafter.longest_match(text)

    def _segmented(self, lead: str, characters: str, text: bytes) -> tuple[int, ...]:
        """The tokens of ``text`` behind ``lead``, if token boundaries fall between the two and the bytes agree."""
        pieces = [self._drafter.token_bytes[t] for t in self._encode(lead + characters)]
        before = self._space + lead.encode()
        first = at = 0
        while at < len(before) and first < len(pieces):
            at, first = at + len(pieces[first]), first + 1
        if at != len(before) or b"".join(pieces) != before + text or b"" in pieces:
            return ()
        return tuple([self._drafter.ids[piece] for piece in pieces[first:]])


def canonical_paths(target: Vocabulary, drafter: Vocabulary, encode: Encode) -> dict[int, tuple[int, ...]]:
    """The path of every target token that has one, by the rules of ``Speller``."""
    spell = Speller(target, drafter, encode)
    return {token: path for token in (*target.ids.values(), *target.eos) if (path := spell(token))}
