"""Answers become part of a round, or an exclusion with its reason. It knows neither who is asked nor when."""

from ..common.errors import UpdateRejected
from ..common.records import decode_evaluation, decode_update, tensor_bytes
from .exchange import Answer
from .round import Round


def take(opened: Round, answer: Answer) -> bool:
    """Lets the update of an answer into the round, if it is one that may; says whether it did."""
    try:
        records = answer.records()
        opened.received(tensor_bytes(records))
        opened.take(decode_update(records, answer.identity))
    except UpdateRejected as error:
        opened.exclude(answer.identity.client, error)
        return False
    return True


def measure(opened: Round, answer: Answer) -> None:
    """Adds the figures of an answer to the round, if it has any."""
    try:
        records = answer.records()
        opened.received(tensor_bytes(records))
        opened.measure(decode_evaluation(records, answer.identity))
    except UpdateRejected as error:
        opened.miss(answer.identity.client, error)
