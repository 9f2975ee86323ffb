"""One process at a time in a directory. It knows nothing of what lies there."""

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from .errors import UserError

_held: "weakref.WeakSet[DirectoryLock]" = weakref.WeakSet()


class DirectoryLock:
    """Holds a directory for this process, from its making to ``release`` or to the process's end, however it ends.

    The lock is the kernel's (``flock``) on a file that stays, so a dead process never blocks; children of a fork do not
    hold it either. Nothing waits.

    Args:
      directory: has to exist.
      name: of the lock file in it.
      writable: whether the file may be made and written; else it has to be there.

    Raises:
      UserError: another process holds it, or this one does already; or it cannot be locked.
    """

    def __init__(self, directory: Path, name: str, writable: bool = True) -> None:
        path = directory / name
        try:
            self._fd = os.open(path, (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            what = "written" if writable else "read"
            raise UserError(f"{path} cannot be {what} ({error.strerror}); make {directory} writable") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace") or "(unknown)"
            os.close(self._fd)
            if not isinstance(error, BlockingIOError):
                raise UserError(f"{directory} cannot be locked: {error.strerror}; give one on a local disk") from error
            raise UserError(
                f"{directory} is in use by process {holder}; end that one, or give another directory"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: the number is for the message only
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Lets others in; a second call does nothing."""
        _held.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _leave_to_parent() -> None:
    for lock in list(_held):
        lock.release()


# A forked child shares the parent's lock for as long as it has the file open, even after the parent's death.
os.register_at_fork(after_in_child=_leave_to_parent)
