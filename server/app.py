"""The operator's door to Flower: a ServerApp that runs our rounds."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .config import ServerConfig
from .registry.registry import Registry
from .strategy import FleetStrategy, OnRound


def make_server_app(config: ServerConfig, registry: Registry, on_round: OnRound = lambda report: None) -> ServerApp:
    """A ServerApp that does the rounds of ``config`` that ``registry`` does not hold yet.

    Args:
      registry: must hold a first release (``Registry.begin``).
      on_round: called with each round's report as it closes, on the ServerApp's thread.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        FleetStrategy(config, registry, on_round).run(grid)

    return app
