"""The one place that runs a federation on Flower's simulation engine."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from ..common.errors import FleetError
from ..server.mailbox import Mailbox
from .engine import end_workers, engine

_STOP_S = 5.0


def run_fleet(server_app: ServerApp, client_app: ClientApp, *, clients: int, workers: int, folder: Path) -> None:
    """Runs a federation of ``clients`` simulated devices on ``workers`` processes until the server app returns.

    Guarantees:
      - Offline: no telemetry, no installation, no dashboard.
      - Quiet: what Flower and the devices log goes to ``folder/server.log`` and ``folder/devices.log``.
      - Interrupt and termination (when called from the main thread) stop the run at the next poll of the server app;
        the second one at once.
      - However it ends, no process stays behind, even if a device never answers; the environment is as before.

    Args:
      clients: devices; each finds its number, from 0, in ``context.node_config["partition-id"]``.
      workers: processes of one CPU each, for which devices queue. Queueing counts against the server's timeout, and a
        silent device holds its worker for as long as it is silent.
      folder: for logs.

    Raises:
      FleetError: the engine failed, or this process already uses Ray.
      KeyboardInterrupt: interrupted.
      SystemExit: terminated.
      Exception: whatever the server app raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guard = _Guard(server_app)
    with _signals(guard.stop) as catch, engine(workers, folder):
        catch()  # Ray has put its own handler in the place of ours
        guard.run(client_app, clients)
    guard.raise_outcome()


class _Guard:
    """A server app that can be told to stop, whose error is kept, and after which no device goes on working."""

    def __init__(self, server_app: ServerApp) -> None:
        self._server_app = server_app
        self._stop = threading.Event()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._signal: int | None = None

    def run(self, client_app: ClientApp, clients: int) -> None:
        """Runs the engine until the server app has returned."""
        app = ServerApp()
        app.main()(self._main)
        try:
            run_simulation(app, client_app, clients, backend_config={"client_resources": {"num_cpus": 1}})
        except Exception as error:
            raise FleetError(f"the simulation engine failed: {error}; see server.log") from error
        finally:
            # Where the engine gave up, the server app's thread is still waiting for it.
            self._stop.set()
            self._done.wait(_STOP_S)

    def stop(self, signal_number: int) -> None:
        """Makes the server app's next poll raise."""
        self._signal = signal_number
        self._stop.set()

    def raise_outcome(self) -> None:
        """Raises what the run ended with, if it did not end well."""
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
        if self._error is not None:
            raise self._error

    def _main(self, grid: Grid, context: Context) -> None:
        try:
            self._server_app(Mailbox(grid, self._stop.is_set), context)
        except BaseException as error:  # kept for raise_outcome; the engine would raise it only if it ended well itself
            self._error = error
        finally:
            end_workers()
            self._done.set()


@contextlib.contextmanager
def _signals(stop: Callable[[int], None]) -> Iterator[Callable[[], None]]:
    """Turns the first interrupt or termination into an orderly stop; yields what puts the handlers in place again."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        restore()
        stop(number)

    def catch() -> None:
        for number in before:
            signal.signal(number, on_signal)

    catch()
    try:
        yield catch
    finally:
        restore()
