"""What an operator decides about releases: to promote one, or to go back. It judges no figures (``canary.py``)."""

from ...common.errors import UserError
from .catalogue import Catalogue
from .lineage import number_of


def promote(catalogue: Catalogue, name: str, reason: str, force: bool = False) -> bool:
    """Puts a release in force; the head stays, and is compared with this release from now on.

    Args:
      force: a release that the canary blocked, too.

    Returns:
      Whether that changed anything.

    Raises:
      UserError: it is blocked, and neither forced nor given a reason.
      RegistryError: it is damaged, or another process writes to the registry.
    """
    catalogue.claim()
    now = catalogue.standing()
    catalogue.directories.check(name)
    if name in now.blocked and not (force and reason):
        raise UserError(
            f"release {number_of(name)} is blocked: {now.blocked[name]}; to promote it all the same give --force and "
            "--reason TEXT"
        )
    if now.promoted == name:
        return False
    catalogue.record(catalogue.event("promoted", name, reason=_told(reason)))
    return True


def roll_back(catalogue: Catalogue, reason: str, to: str | None = None) -> tuple[str, bool]:
    """Puts an earlier release in force and makes it the head, so that the next round starts from it.

    Args:
      to: by default the release that was in force before the present one.

    Returns:
      (that release, whether anything changed).

    Raises:
      UserError: there is no such release, or it is blocked.
      RegistryError: it is damaged, or another process writes to the registry.
    """
    catalogue.claim()
    now = catalogue.standing()
    if to is None:
        if len(now.promotions) < 2:
            raise UserError("no release was in force before the present one; name one with --to N")
        to = now.promotions[-2]
    catalogue.directories.check(to)
    if to in now.blocked:
        number = number_of(to)
        raise UserError(
            f"release {number} is blocked: {now.blocked[to]}; promote it with --force first, or name another"
        )
    if (now.promoted, now.head) == (to, to):
        return to, False
    catalogue.record(catalogue.event("rolled back", to, reason=_told(reason)))
    return to, True


def _told(reason: str) -> str:
    return f"by the operator: {reason}" if reason else "by the operator"
