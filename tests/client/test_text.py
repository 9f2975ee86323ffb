"""Emitted bytes become pieces of text that split no character and show no stop string."""

from hypothesis import given
from hypothesis import strategies as st

from fleetdraft.client.spelling.text import StopStrings, Utf8Stream

AB = st.text("ab", max_size=30)


@given(st.text(max_size=20), st.integers(1, 5))
def test_pieces_split_no_character(text: str, size: int) -> None:
    stream, data = Utf8Stream(), text.encode()
    pieces = [stream.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert "".join([*pieces, stream.close()]) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_half_a_character_at_the_end_is_replaced() -> None:
    stream = Utf8Stream()
    assert stream.feed("é".encode()[:1]) == ""
    assert stream.close() == "\ufffd"


@given(st.lists(AB, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    """The reference looks at the text grown piece by piece: the first piece that completes a stop string ends it."""
    stream, shown, grown, end = StopStrings(stops), "", "", None
    for piece in pieces:
        grown += piece
        shown += stream.feed(piece)
        assert grown.startswith(shown)
        found = [grown.find(stop) for stop in stops if stop in grown]
        assert stream.found == bool(found)
        if found:
            end = min(found)
            break
    assert shown + stream.close() == grown[:end]


def test_only_what_may_become_a_stop_string_is_held() -> None:
    stream = StopStrings(["###", "\n\n"])
    assert [stream.feed(piece) for piece in ("a#", "#b", "\n", "c##", "d")] == ["a", "##b", "", "\nc", "##d"]
    assert stream.feed("#") == ""
    assert stream.close() == "#"


def test_without_stop_strings_nothing_is_held() -> None:
    stream = StopStrings()
    assert stream.feed("abc") == "abc"
    assert stream.close() == ""
