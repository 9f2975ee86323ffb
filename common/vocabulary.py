"""A vocabulary as byte strings: what each token of a model spells, and which ids end or begin a text.

Read from ``tokenizer.json`` as plain JSON, so it knows no encoder. Two tokens of two models are the same token if and
only if they spell the same bytes; display strings are never compared.

| token                                            | spells                                     |
|--------------------------------------------------|--------------------------------------------|
| byte-level BPE                                   | its characters through the GPT-2 alphabet  |
| SentencePiece piece                              | its UTF-8, with the meta symbol as a space |
| SentencePiece ``<0xNN>``                         | that byte                                  |
| added, not special: byte-level                   | its literal text                           |
| added, not special: SentencePiece                | as a piece                                 |
| special, unknown, eos, bos, padding beyond the tokenizer, characters outside the alphabet | nothing (``b""``) |
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ModelError
from .files import read_json, sha256_file

_META = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: Texts of eos and bos, for a tokenizer that comes without any file that names the roles.
_USUAL_EOS = ("</s>", "<|end_of_text|>", "<|endoftext|>")
_USUAL_BOS = ("<s>", "<|begin_of_text|>")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The byte strings of a model's tokens."""

    token_bytes: tuple[bytes, ...]
    """One entry for each logit; ``b""`` for an id that spells nothing."""
    byte_pieces: frozenset[int] = frozenset()
    """Ids of SentencePiece's ``<0xNN>``, which often repeat what an ordinary token spells."""
    eos: tuple[int, ...] = ()
    """Ids that end a text, the tokenizer's own first."""
    bos: int | None = None
    dummy_prefix: bool = False
    """Whether the encoder puts a space before a text that it encodes, at least where the text begins with none."""
    special: frozenset[int] = frozenset()
    """Ids of a role and of tokens that the tokenizer marks as special; they spell nothing."""
    padding: frozenset[int] = frozenset()
    """Ids that the tokenizer does not know; they spell nothing."""
    fingerprint: str = ""
    """SHA-256 over ``tokenizer.json`` and the width."""

    @property
    def width(self) -> int:
        """Width of a row of logits; may exceed the tokenizer."""
        return len(self.token_bytes)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The one usable id of each byte string: the lowest, and a byte piece only where nothing else spells it."""
        spelled = [t for t, text in enumerate(self.token_bytes) if text]
        preferred_last = sorted(spelled, key=lambda t: (t in self.byte_pieces, t), reverse=True)
        return {self.token_bytes[t]: t for t in preferred_last}

    def spell(self, tokens: Iterable[int]) -> bytes:
        """The bytes of ``tokens``, one after the other."""
        return b"".join(self.token_bytes[t] for t in tokens)

    def longest_match(self, text: bytes) -> tuple[int, ...]:
        """Tokens that spell ``text``, the longest first; ``()`` where a byte of it has no token."""
        tokens: list[int] = []
        at = 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self.ids), None)
            if end is None:
                return ()
            tokens.append(self.ids[text[at:end]])
            at = end
        return tuple(tokens)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids), default=0)

    @classmethod
    def from_directory(cls, directory: Path, width: int) -> "Vocabulary":
        """Reads ``tokenizer.json`` and, where present, the three configs that name eos and bos.

        Args:
          directory: a Hugging Face model or tokenizer directory.
          width: width of the model's logits.

        Raises:
          ModelError: no ``tokenizer.json``, one that is neither byte-level BPE nor SentencePiece style, or one with
            more tokens than ``width``.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{directory} holds no tokenizer.json; convert a slow tokenizer to a fast one first")
        try:
            return _read(path, width)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: missing or malformed field {error!r}") from error


def _read(path: Path, width: int) -> Vocabulary:
    tokenizer = read_json(path)
    pieces = _pieces(tokenizer["model"], path)
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens") or ()}
    eos, bos = _roles(path.parent, pieces, added, width)
    token_bytes = _spelled(tokenizer, pieces, added, path)
    marked = {int(entry["id"]) for entry in added.values() if entry["special"]}
    special = frozenset(t for t in {*eos, bos, *marked} if t is not None and t < width)
    silent = {*special, *marked, _unknown(tokenizer["model"])}
    return Vocabulary(
        token_bytes=_padded({t: b"" if t in silent else text for t, text in token_bytes.items()}, width, path),
        byte_pieces=_byte_pieces(tokenizer, pieces),
        eos=eos,
        bos=bos,
        dummy_prefix=_has_dummy_prefix(tokenizer),
        special=special,
        padding=frozenset(range(width)) - token_bytes.keys() - special,
        fingerprint=hashlib.sha256(f"{sha256_file(path)} {width}".encode()).hexdigest(),
    )


def _pieces(model: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Piece to id: BPE stores a mapping, Unigram a list of (piece, score)."""
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "Unigram"):
        raise ModelError(f"{path}: tokenizer model is {kind!r}, expected 'BPE' or 'Unigram'")
    if affix := model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(f"{path}: tokens carry the mark {affix!r} of a word's parts, so they have no known bytes")
    if kind == "Unigram":
        return {piece: t for t, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _spelled(
    tokenizer: Mapping[str, Any], pieces: Mapping[str, int], added: Mapping[str, Any], path: Path
) -> dict[int, bytes]:
    """What each token of the tokenizer spells, roles aside."""
    spell = _speller(tokenizer, path)
    # A byte-level tokenizer finds its added tokens in the text as they are, while a SentencePiece model's own runs of
    # meta symbols are listed as added tokens too (Gemma).
    literal: Callable[[str], bytes] = str.encode if spell is _spell_byte_level else spell
    spelled = {t: spell(piece) for piece, t in pieces.items()}
    return spelled | {int(entry["id"]): literal(content) for content, entry in added.items()}


def _unknown(model: Mapping[str, Any]) -> int | None:
    """The id for text that no token spells: BPE names its piece, Unigram its id."""
    piece = model.get("unk_token")
    return model["vocab"].get(piece) if piece is not None else model.get("unk_id")


def _padded(token_bytes: Mapping[int, bytes], width: int, path: Path) -> tuple[bytes, ...]:
    beyond = [t for t, text in token_bytes.items() if text and t >= width]
    if beyond:
        raise ModelError(f"{path}: token {min(beyond)} lies beyond the model's {width} logits; files of two models?")
    return tuple(token_bytes.get(t, b"") for t in range(width))


def _speller(tokenizer: Mapping[str, Any], path: Path) -> Callable[[str], bytes]:
    kinds = {part["type"] for part in _parts(tokenizer)}
    spaces = {part["replacement"] for part in _parts(tokenizer) if part["type"] == "Metaspace"}
    if not spaces <= {_META}:
        raise ModelError(f"{path}: Metaspace writes a space as {', '.join(sorted(spaces))}, expected {_META}")
    if "ByteLevel" in kinds:
        return _spell_byte_level
    if tokenizer["model"].get("byte_fallback"):
        return _spell_with_byte_pieces
    if "Metaspace" in kinds or any(part.get("content") == _META for part in _parts(tokenizer)):
        return _spell_meta
    raise ModelError(f"{path}: neither byte-level nor SentencePiece style, so its tokens have no known bytes")


def _spell_byte_level(piece: str) -> bytes:
    if all(character in _ALPHABET for character in piece):
        return bytes(_ALPHABET[character] for character in piece)
    return b""


def _spell_meta(piece: str) -> bytes:
    return piece.replace(_META, " ").encode()


def _spell_with_byte_pieces(piece: str) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(match[1]) if match else _spell_meta(piece)


def _byte_pieces(tokenizer: Mapping[str, Any], pieces: Mapping[str, int]) -> frozenset[int]:
    if not tokenizer["model"].get("byte_fallback"):
        return frozenset()
    return frozenset(t for piece, t in pieces.items() if _BYTE_PIECE.fullmatch(piece))


def _has_dummy_prefix(tokenizer: Mapping[str, Any]) -> bool:
    before_encoding = [*_flatten(tokenizer.get("normalizer")), *_flatten(tokenizer.get("pre_tokenizer"))]
    return any(
        part["type"] == "Prepend" or part.get("add_prefix_space") or part.get("prepend_scheme") in ("always", "first")
        for part in before_encoding
    )


def _parts(tokenizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for role in ("normalizer", "pre_tokenizer", "decoder") for part in _flatten(tokenizer.get(role))]


def _flatten(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, with its sequences opened."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for inner in part.get(key, ()):
            yield from _flatten(inner)


def _roles(
    directory: Path, pieces: Mapping[str, int], added: Mapping[str, Any], width: int
) -> tuple[tuple[int, ...], int | None]:
    """(eos ids, bos id): the tokenizer's own token first, then what the model's configs add, else the usual ones."""
    ids = {**pieces, **{content: int(entry["id"]) for content, entry in added.items()}}
    special = {content: int(entry["id"]) for content, entry in added.items() if entry["special"]}
    eos = _role(directory, "eos", ids) or [special[text] for text in _USUAL_EOS if text in special]
    bos = _role(directory, "bos", ids) or [special[text] for text in _USUAL_BOS if text in special]
    return tuple(t for t in dict.fromkeys(eos) if t < width), next((t for t in bos if t < width), None)


def _role(directory: Path, role: str, ids: Mapping[str, int]) -> list[int]:
    token = _optional(directory / "tokenizer_config.json").get(f"{role}_token") or ""
    text = token["content"] if isinstance(token, dict) else token
    found = [ids[text]] if text in ids else []
    configs = [_optional(directory / name) for name in ("generation_config.json", "config.json")]
    for config in (*configs, _optional(directory / "genai_config.json").get("model", {})):
        value = config.get(f"{role}_token_id")
        if value is not None:
            found += value if isinstance(value, list) else [value]
    return found


def _optional(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}


def _alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_ALPHABET = _alphabet()
