"""The operator's door to Flower: a ServerApp that runs our rounds."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .config import ServerConfig
from .registry.registry import Registry
from .strategy import FleetStrategy, OnRound, OnStop


def make_server_app(
    config: ServerConfig,
    registry: Registry,
    on_round: OnRound = lambda report: None,
    on_stop: OnStop = lambda reason: None,
) -> ServerApp:
    """A ServerApp that does the rounds of ``config`` that are left to do with ``registry``.

    Args:
      registry: must hold a first release (``Registry.begin``).
      on_round: called with each round's report as it closes, on the ServerApp's thread; after a kill perhaps twice with
        the same.
      on_stop: called with the reason if the run ends before its last round, e.g. ``budget: …``.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        FleetStrategy(config, registry, on_round, on_stop).run(grid)

    return app


def next_round(config: ServerConfig, registry: Registry) -> int:
    """The number of the round that a ServerApp of ``config`` would begin with; beyond ``config.rounds`` when all are
    done.

    Raises:
      ConfigError: the round in progress was begun with other settings.
    """
    return FleetStrategy(config, registry).next_round()
