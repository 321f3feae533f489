"""Makes a journal's path in ZooKeeper on first use, and looks whether it is ours and lets us write.

All nodes of a new journal are made in one multi: there is a whole journal, or none.
"""

from __future__ import annotations

import uuid
from typing import Any

from kazoo.exceptions import BadVersionError, NodeExistsError, NoNodeError
from kazoo.security import OPEN_ACL_UNSAFE

from stoker.zk.codec import LEVEL_MIN, Term, encode_schema, encode_term, read_schema, read_term
from stoker.zk.errors import Corrupt, Incomplete, Unavailable
from stoker.zk.layout import Layout
from stoker.zk.session import AnswerLost, Sendings, Session, getting, listing, writing

_TRIES_MAX = 10
_NO_VERSION = 2**30
_ANY_VERSION = -1


def prepare(session: Session) -> str:
    """Return the uuid of the journal at the session's path; one is made where nothing is.

    :raises Corrupt, Incomplete, TooNew, Denied, Unavailable: another application's data; a part of it was deleted; a
        newer format; no right to read or to write; no ZooKeeper. Nothing was changed.
    """
    layout = session.layout
    for _ in range(_TRIES_MAX):
        found = _read_schema(session)
        if found is not None:
            _check_rights(session)
            return found
        _check_empty(session)
        try:
            _make_parents(session)
            session.transact(*_new_journal(layout))
        except (NodeExistsError, NoNodeError, AnswerLost):
            # Another scheduler was faster, or we were, and did not hear of it; or somebody deletes what we make.
            session.wait_connected()
    raise Unavailable(f"cannot make the journal at {layout.root}: others make and delete it all the time")


def _read_schema(session: Session) -> str | None:
    try:
        data, _ = session.ask(getting(session.layout.schema))
    except NoNodeError:
        return None
    try:
        return read_schema(data)
    except Corrupt as error:
        raise Corrupt(f"{session.layout.schema} in ZooKeeper is not a Stoker journal's: {error}") from error


def _check_empty(session: Session) -> None:
    root = session.layout.root
    try:
        session.ask(lambda client: client.sync_async(root))
        names = sorted(session.ask(listing(root)))
        data, _ = session.ask(getting(root))
    except NoNodeError:
        return
    if data:
        raise Corrupt(
            f"{root} in ZooKeeper holds another application's data ({len(data)} bytes): name a path of its own"
        )
    if names and "schema" not in names:
        if _is_ours(session):
            raise Incomplete(_not_whole(root))
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise Corrupt(
            f"{root} in ZooKeeper holds another application's data ({shown}): name a path of its own"
        )


def _is_ours(session: Session) -> bool:
    """Say whether a term of ours is there, though nothing says that the path is ours."""
    try:
        read_term(session.ask(getting(session.layout.epoch))[0])
    except (Corrupt, NoNodeError):
        return False
    return True


def _not_whole(root: str) -> str:
    return (
        f"{root} in ZooKeeper is not whole: a part of the journal was deleted; bring a backup back with "
        "`stoker journal restore --overwrite`"
    )


def _make_parents(session: Session) -> None:
    parts = session.layout.root.split("/")[1:]
    for depth in range(1, len(parts) + 1):
        path = "/" + "/".join(parts[:depth])
        if _is_missing(session, path):
            _make(session, path, is_ours=depth == len(parts))


def _is_missing(session: Session, path: str) -> bool:
    return session.ask(lambda client: client.exists_async(path)) is None


def _make(session: Session, path: str, *, is_ours: bool) -> None:
    """Make one node of the path. Those above our own are shared: open, as ZooKeeper's own tools make them."""
    options: dict[str, Any] = {} if is_ours else {"acl": OPEN_ACL_UNSAFE}
    try:
        session.ask(lambda client: client.create_async(path, b"", **options))
    except NodeExistsError:
        return  # by another scheduler, or by us in a try that was not answered


def _new_journal(layout: Layout) -> list[tuple[str, tuple[object, ...]]]:
    return [
        ("create", (layout.schema, encode_schema(uuid.uuid4().hex))),
        ("create", (layout.epoch, encode_term(Term(0, LEVEL_MIN, "")))),
        *(("create", (path, b"")) for path in layout.folders),
    ]


def _check_rights(session: Session) -> None:
    """Try all kinds of writes in a multi that ends with a condition that never holds. :raises Denied: one is not allowed."""
    layout, name = session.layout, f"rights-{uuid.uuid4().hex}"
    folders = (layout.election, layout.log, layout.snapshots, layout.blobs)
    operations: list[tuple[str, tuple[object, ...]]] = [
        ("create", (f"{path}/{name}", b"")) for path in folders
    ]
    operations += [("delete", (f"{path}/{name}",)) for path in folders]
    operations += [("check", (layout.pointer, _ANY_VERSION)), ("set_data", (layout.epoch, b"", _NO_VERSION))]
    sendings = Sendings(session, writing(operations))
    try:
        while True:
            try:
                session.transact(*operations)
            except AnswerLost as lost:
                sendings.await_next(lost)
                continue
            raise Unavailable(f"{layout.epoch} was changed at a version that it does not have")
    except BadVersionError:
        return
    except NoNodeError as error:
        raise Incomplete(_not_whole(layout.root)) from error
