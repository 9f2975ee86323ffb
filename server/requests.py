"""What is asked in a round: one request for all devices, and the same with terms for gateways. It sends nothing."""

from flwr.app import RecordDict

from ..common.messages import EvaluateTask, Identity, SumTerms, TrainTask
from ..common.records import encode_request
from .config import ServerConfig
from .round import Round


class Requests:
    """The requests of one task with the release that the round is about."""

    def __init__(self, config: ServerConfig, task: TrainTask | EvaluateTask, opened: Round) -> None:
        self._gateways = config.gateways
        self._plain = encode_request(task, opened.release)
        terms = SumTerms(weights=config.aggregation.weights, devices=config.gateway_devices, in_force=opened.in_force)
        self._summed = encode_request(task, opened.release, terms) if config.gateways else self._plain

    def to(self, identity: Identity) -> RecordDict:
        """The request for one device; for a gateway it says how to add up."""
        return self._summed if identity.client in self._gateways else self._plain
