"""Growing waits after wrong passwords and wrong passcodes, counted in the database for all hosts.

The sign-in page counts an attempt before it checks the password, and withdraws the count if the password was right: parallel
guesses gain nothing. Reception counts only wrong passcodes, so that a correct sender causes no write.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update

from cxr_node.store.database import write
from cxr_node.store.schema import failed_attempts as table

_FIRST_WAIT_S, _LONGEST_WAIT_S = 5.0, 900.0
_LONGEST_SENDER_WAIT_S = 300.0
"""The longest wait of a modality whose passcode is corrected."""
_FORGOTTEN_S = 86400.0
_KNOWN_PLACE_S = 30 * 86400.0
"""How long a network counts as one from which a user signs in."""
_MOST_ROWS = 10_000
"""Made-up names do not fill the database: beyond this number the oldest rows are deleted."""


@dataclass(frozen=True)
class AttemptKey:
    """What attempts are counted by.

    what: kept as a hash alone, since a person may type a password in place of a name.
    free: the attempt of this number is the first that a wait follows.
    is_shared: others attempt under it too: a success takes back one attempt, not all.
    longest_s: the wait grows no further.
    known_place: who has signed in under this key lately does not wait for this one (see `keys_of_login`).
    """

    what: str
    free: int
    is_shared: bool = False
    longest_s: float = _LONGEST_WAIT_S
    known_place: str = ""


def keys_of_login(name: str, site: str) -> tuple[AttemptKey, ...]:
    """By name and network together, and more patiently by each alone: nobody is locked out by a stranger's few guesses.

    Nor by many: they count for the name everywhere except on the networks where its user has signed in within a month.
    """
    return (
        AttemptKey(f"login {name} {site}", 3),
        AttemptKey(f"login from {site}", 15, is_shared=True),
        AttemptKey(f"login as {name}", 30, known_place=f"signed in {name} {site}"),
    )


def keys_of_sender(calling_ae_title: str, site: str) -> tuple[AttemptKey, ...]:
    """By AE title and network together, so that a sender elsewhere under the same title is not locked out."""
    return (AttemptKey(f"sender {calling_ae_title} {site}", 4, longest_s=_LONGEST_SENDER_WAIT_S),)


def begin(engine: Engine, keys: Sequence[AttemptKey], clock: Callable[[], float] = time.time) -> float:
    """Count an attempt, unless its time hasn't come; gives how many seconds to wait, 0 if it may be made now."""
    now = clock()
    with write(engine) as connection:
        _serialise(connection)
        _forget(connection, now)
        known = {key: _row(connection, key) for key in keys}
        left_s = max(_waits(connection, known, now), default=0.0)
        if left_s > 0:
            return left_s
        for key, (failed, _, last_at) in known.items():
            count = 1 + (failed if last_at + _FORGOTTEN_S > now else 0)
            _keep(connection, key.what, failed=count, last_at=now, locked_until=now + wait_after(count, key))
    return 0.0


def wait_s(engine: Engine, keys: Sequence[AttemptKey], clock: Callable[[], float] = time.time) -> float | None:
    """How many seconds to wait before an attempt, without counting one; None: nothing has failed under these keys."""
    now = clock()
    with engine.connect() as connection:
        return max(_waits(connection, {key: _row(connection, key) for key in keys}, now), default=None)


def succeeded(engine: Engine, keys: Sequence[AttemptKey], clock: Callable[[], float] = time.time) -> None:
    """Take back the attempt that `begin` counted: it was a right one. Its place is known from now on."""
    with write(engine) as connection:
        _serialise(connection)
        for key in keys:
            if key.known_place:  # dated ahead, and so forgotten later than attempts
                _keep(connection, key.known_place, failed=0, last_at=clock() + _KNOWN_PLACE_S - _FORGOTTEN_S, locked_until=0.0)
            if key.is_shared:
                connection.execute(
                    update(table)
                    .where(table.c.who == _hash(key.what), table.c.failed > 0)
                    .values(failed=table.c.failed - 1, locked_until=0)
                )
            else:
                connection.execute(delete(table).where(table.c.who == _hash(key.what)))


def wait_after(failed: int, key: AttemptKey) -> float:
    """The wait in seconds after this many failures: none for the first ones, then doubling from 5 s to the maximum."""
    return 0.0 if failed < key.free else min(key.longest_s, _FIRST_WAIT_S * 2.0 ** min(30, failed - key.free))


def _keep(connection: Connection, what: str, **values: float) -> None:
    if not connection.execute(update(table).where(table.c.who == _hash(what)).values(**values)).rowcount:
        connection.execute(insert(table).values(who=_hash(what), **values))


def _waits(connection: Connection, known: Mapping[AttemptKey, tuple[int, float, float]], now: float) -> list[float]:
    """How much of its wait is left for each key under which something has failed."""
    found = []
    for key, (failed, until, last_at) in known.items():
        if failed and last_at + _FORGOTTEN_S > now:
            left_s = _left_s(key, until, now)
            is_known = left_s > 0 and bool(key.known_place) and _last_at(connection, key.known_place) + _FORGOTTEN_S > now
            found.append(0.0 if is_known else left_s)
    return found


def _last_at(connection: Connection, what: str) -> float:
    return float(connection.execute(select(table.c.last_at).where(table.c.who == _hash(what))).scalar() or 0.0)


def _left_s(key: AttemptKey, until: float, now: float) -> float:
    """How much of a wait is left; a longer one than any was counted before the clock was set back, and is over."""
    return until - now if 0 < until - now <= key.longest_s else 0.0


def _serialise(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))


def _row(connection: Connection, key: AttemptKey) -> tuple[int, float, float]:
    found = connection.execute(
        select(table.c.failed, table.c.locked_until, table.c.last_at).where(table.c.who == _hash(key.what))
    ).first()
    return (0, 0.0, 0.0) if found is None else (found[0], found[1], found[2])


def _forget(connection: Connection, now: float) -> None:
    connection.execute(delete(table).where(table.c.last_at < now - _FORGOTTEN_S))
    rows = connection.execute(select(func.count()).select_from(table)).scalar() or 0
    if rows >= _MOST_ROWS:
        oldest = select(table.c.id).order_by(table.c.last_at).limit(rows - _MOST_ROWS + 100)
        connection.execute(delete(table).where(table.c.id.in_(oldest)))


def _hash(what: str) -> str:
    return hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()
