"""Normalises the PDUs that open and end an association, so that pynetdicom decodes them whatever the peer sent.

pynetdicom ends the association because of an unknown item, a name that is too long, or a title padded with NUL. The standard
skips such items (PS3.8 section 9.3.1 and annex D.2), and dcmtk and Orthanc accept them. This module therefore reads
A-ASSOCIATE-RQ and A-ASSOCIATE-AC item by item and rewrites them with the meaningful items. It does no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

_REQUEST, _ACCEPT, _REJECT, _P_DATA, _ABORT = 0x01, 0x02, 0x03, 0x04, 0x07
"""PDU types (PS3.8 section 9.3)."""
_APPLICATION, _PROPOSED, _ANSWERED, _USER = 0x10, 0x20, 0x21, 0x50
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
_MAXIMUM_LENGTH, _IMPLEMENTATION, _ROLE, _VERSION_NAME, _USER_IDENTITY = 0x51, 0x52, 0x54, 0x55, 0x58
"""Item types (PS3.8 section 9.3.2, PS3.7 annex D.3.3). Items that the node does not use are dropped like unknown ones: the
asynchronous operations window (0x53), extended negotiation (0x56, 0x57), the answer to a user identity (0x59)."""

_FIXED_BYTES = 74
"""PDU header, protocol version, AE titles and reserved bytes, before the items."""
_SUPPORTED_VERSION = 0x0001
"""Of the protocol version only this bit is tested (PS3.8 section 9.3.2)."""
_APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
_NOBODY = b"?"
"""Stands for an AE title of spaces or NUL, and for each character of a title that the standard doesn't allow."""
_NO_SYNTAX = b"0.0"
"""Replaces a missing syntax: nobody supports it, so only its own presentation context is refused."""
_ASSUMED_IMPLEMENTATION = b"0.0"
_ASSUMED_LENGTH = 16384
"""For a peer that gives no maximum length, or one that no fragment fits in."""
_SHORTEST_LENGTH = 8
"""The header of a PDV item, and two bytes of its value (PS3.8 section 9.3.5.1)."""
_LONGEST_NAME, _LONGEST_UID = 16, 64
_NO_REASON = 2
"""Result of a presentation context that isn't accepted: provider rejection (PS3.8 table 9-18)."""
_UNSUPPORTED_SYNTAXES = 4

LONGEST_REQUEST_BYTES = 64 * 1024
"""Of an association request, header included. One that proposes 128 contexts with ten syntaxes each has some 30,000."""
_MOST_ITEMS = 256
"""At the top of an association PDU: at most 128 presentation contexts (their numbers are odd), and few others."""
_MOST_SYNTAXES = 64
"""Of a presentation context; what comes after them is passed over."""
_MOST_ROLES = 128


class BrokenRequest(ValueError):  # noqa: N818 - becomes the state machine's "invalid PDU"
    """A PDU of the association that can't be read: its items don't fit in it."""


def normalise(pdu: bytes, prefer: Mapping[bytes, int] | None = None) -> bytes:
    """The PDU as pynetdicom takes it. Other PDUs than those that open, reject or abort an association are returned as they are.

    Args:
        pdu: the whole of it, header included.
        prefer: transfer syntaxes and their places in the order in which they are taken: of each context that a request
            proposes only the one that will be taken is kept, which makes the rest cost nothing. None keeps all.

    Raises:
        BrokenRequest: it is too short or too long, has too many items, or one goes beyond its end.
    """
    pdu_type = pdu[0]
    if pdu_type in (_REQUEST, _ACCEPT):
        return _normalise_association(pdu, prefer)
    if pdu_type in (_REJECT, _ABORT):
        return _normalise_end(pdu)
    return pdu


def check_outline(pdu: bytes) -> None:
    """Look at the frame of an association PDU, without what is in its items.

    Raises:
        BrokenRequest: as `normalise`.
    """
    if len(pdu) < _FIXED_BYTES:
        raise BrokenRequest("an association PDU that is too short")
    if len(pdu) > LONGEST_REQUEST_BYTES:
        raise BrokenRequest(f"an association PDU of {len(pdu)} bytes, more than {LONGEST_REQUEST_BYTES}")
    at, count = _FIXED_BYTES, 0
    while at + 4 <= len(pdu):
        length = int.from_bytes(pdu[at + 2 : at + 4], "big")
        at += 4 + length
        count += bool(length)  # padding of zeros looks like empty items
        if count > _MOST_ITEMS:
            raise BrokenRequest(f"an association PDU of more than {_MOST_ITEMS} items")
    if at > len(pdu):
        raise BrokenRequest("an item extends beyond the end of its association PDU")


def with_odd_ids(request: bytes) -> tuple[bytes, dict[int, int]]:
    """An association request in which every presentation context has an odd ID, as the standard asks (PS3.8 section 9.3.2.2).

    Some peers number them 0, 2, 4 …; dcmtk's SCP takes that, pynetdicom doesn't.

    Args:
        request: an A-ASSOCIATE-RQ, header included.

    Returns:
        the request, and which odd ID stands for each even one. An even ID for which no odd one is left stays as it is.

    Raises:
        BrokenRequest: as `check_outline`.
    """
    check_outline(request)
    places = list(_places(request, _PROPOSED))
    used = {request[at] for at in places}
    free = (number for number in range(1, 256, 2) if number not in used)
    stands_for = dict(zip(sorted(number for number in used if number % 2 == 0), free, strict=False))
    return _renumbered(request, places, stands_for), stands_for


def with_ids(pdu: bytes, ids: Mapping[int, int]) -> bytes:
    """An A-ASSOCIATE-AC or P-DATA-TF PDU of ours with other presentation context IDs: `ids` maps those in it to the new ones."""
    if pdu[0] == _ACCEPT:
        return _renumbered(pdu, _places(pdu, _ANSWERED), ids)
    return _renumbered(pdu, _places_of_pdvs(pdu), ids) if pdu[0] == _P_DATA else pdu


def speaks_our_version(pdu: bytes) -> bool:
    """Whether an association request is of version 1 of the upper layer protocol (PS3.8 section 9.3.2)."""
    return bool(int.from_bytes(pdu[6:8], "big") & _SUPPORTED_VERSION)


def ae_title(field: bytes) -> bytes:
    """An AE title without padding, in characters that the standard allows.

    Old workstations pad with NUL, some with arbitrary memory after it: a title ends at the first NUL.
    """
    title = field.split(b"\x00", 1)[0].strip(b" ")
    printable = bytes(byte if 0x20 <= byte < 0x7F and byte != 0x5C else _NOBODY[0] for byte in title)
    return printable or _NOBODY


def _normalise_association(pdu: bytes, prefer: Mapping[bytes, int] | None) -> bytes:
    check_outline(pdu)
    is_request = pdu[0] == _REQUEST
    version = _SUPPORTED_VERSION if speaks_our_version(pdu) or not is_request else 0
    application = b""
    contexts: dict[int, bytes] = {}
    user: dict[tuple[int, bytes], bytes] = {}
    for item_type, value in _items(pdu[_FIXED_BYTES:], strict=True):
        if item_type == _APPLICATION:
            application = application or _uid(value)
        elif item_type == (_PROPOSED if is_request else _ANSWERED) and len(value) >= 4 and value[0] % 2:
            contexts.setdefault(value[0], _proposed(value, prefer) if is_request else _answered(value))
        elif item_type == _USER:
            for key, content in _user_items(value, is_request):
                if len(user) < _MOST_ROLES or key[0] != _ROLE:
                    user.setdefault(key, content)
    user.setdefault((_MAXIMUM_LENGTH, b""), struct.pack(">L", _ASSUMED_LENGTH))
    user.setdefault((_IMPLEMENTATION, b""), _ASSUMED_IMPLEMENTATION)
    items = _item(_APPLICATION, application or _APPLICATION_CONTEXT) + b"".join(contexts.values())
    items += _item(_USER, b"".join(_item(kind, content) for (kind, _), content in user.items()))
    called, calling = ae_title(pdu[10:26]), ae_title(pdu[26:42])
    body = struct.pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + pdu[42:_FIXED_BYTES] + items
    return struct.pack(">BBL", pdu[0], 0, len(body)) + body


def _normalise_end(pdu: bytes) -> bytes:
    """A-ASSOCIATE-RJ and A-ABORT: values that the standard reserves are those that give no reason (PS3.8 9.3.4, 9.3.8)."""
    if len(pdu) < 10:
        raise BrokenRequest("a PDU that is too short")
    result, source, reason = pdu[7:10]
    if pdu[0] == _ABORT:
        source = source if source in (0, 2) else 0
        reason = reason if source == 2 and reason in (0, 1, 2, 4, 5, 6) else 0
    else:
        result = result if result in (1, 2) else 1
        known = {1: (1, 2, 3, 7), 2: (1, 2), 3: (1, 2)}
        source, reason = (source, reason) if reason in known.get(source, ()) else (1, 1)
    return pdu[:7] + bytes((result, source, reason)) + pdu[10:]


def _proposed(value: bytes, prefer: Mapping[bytes, int] | None) -> bytes:
    """A presentation context as proposed (PS3.8 section 9.3.2.2), complete."""
    abstract, transfer = b"", dict[bytes, None]()
    for kind, content in islice(_items(value[4:]), _MOST_SYNTAXES + 1):
        uid = _uid(content)
        if kind == _ABSTRACT_SYNTAX:
            abstract = abstract or uid
        elif kind == _TRANSFER_SYNTAX and uid:
            transfer[uid] = None
    if prefer is not None and transfer:
        transfer = {min(transfer, key=lambda uid: prefer.get(uid, len(prefer))): None}
    inner = _item(_ABSTRACT_SYNTAX, abstract or _NO_SYNTAX)
    inner += b"".join(_item(_TRANSFER_SYNTAX, uid) for uid in transfer or (_NO_SYNTAX,))
    return _item(_PROPOSED, bytes((value[0], 0, 0, 0)) + inner)


def _answered(value: bytes) -> bytes:
    """The answer to a presentation context (PS3.8 section 9.3.3.2): a transfer syntax counts only where it is accepted."""
    result = value[2] if value[2] <= _UNSUPPORTED_SYNTAXES else _NO_REASON
    inner = b""
    if result == 0:
        found = (_uid(content) for kind, content in _items(value[4:]) if kind == _TRANSFER_SYNTAX)
        transfer = next((uid for uid in found if uid), b"")
        inner = _item(_TRANSFER_SYNTAX, transfer) if transfer else b""
        result = 0 if transfer else _UNSUPPORTED_SYNTAXES
    return _item(_ANSWERED, bytes((value[0], 0, result, 0)) + inner)


def _user_items(value: bytes, is_request: bool) -> Iterator[tuple[tuple[int, bytes], bytes]]:
    """The relevant user information: (item type, SOP class where there is one for each), and the item's content."""
    for kind, content in _items(value):
        if kind == _MAXIMUM_LENGTH and len(content) == 4:
            length = int.from_bytes(content, "big")
            if length == 0 or length >= _SHORTEST_LENGTH:  # 0: no limit
                yield (kind, b""), content
        elif kind == _IMPLEMENTATION and (uid := _uid(content)):
            yield (kind, b""), uid
        elif kind == _VERSION_NAME and (name := ae_title(content)) != _NOBODY:
            yield (kind, b""), name[:_LONGEST_NAME]
        elif kind == _ROLE and (role := _role(content)):
            yield (kind, role[2:-2]), role
        elif kind == _USER_IDENTITY and is_request and _is_identity(content):
            yield (kind, b""), content


def _role(content: bytes) -> bytes:
    """An SCP/SCU role selection (PS3.7 table D.3-9), or nothing if it isn't one."""
    if len(content) < 4:
        return b""
    length = int.from_bytes(content[:2], "big")
    uid = _uid(content[2 : 2 + length])
    if not uid or len(content) < 4 + length:
        return b""
    roles = bytes(bool(role) for role in content[2 + length : 4 + length])
    return struct.pack(">H", len(uid)) + uid + roles


def _is_identity(content: bytes) -> bool:
    """Whether a user identity (PS3.7 table D.3-14) is complete and of a known type; any other counts as absent."""
    if len(content) < 6 or content[0] not in (1, 2, 3, 4, 5):
        return False
    primary = int.from_bytes(content[2:4], "big")
    if len(content) < 6 + primary:
        return False
    secondary = int.from_bytes(content[4 + primary : 6 + primary], "big")
    return len(content) == 6 + primary + secondary


def _items(content: bytes, *, strict: bool = False) -> Iterator[tuple[int, bytes]]:
    """Items with their values. Too few bytes for another are padding; one that is cut off ends the search, or with `strict`

    Raises:
        BrokenRequest: as it says.
    """
    at = 0
    while at + 4 <= len(content):
        kind, length = struct.unpack_from(">BxH", content, at)
        at += 4
        if at + length > len(content):
            if strict:
                raise BrokenRequest("an item extends beyond the end of its association PDU")
            return
        yield kind, content[at : at + length]
        at += length


def _places(pdu: bytes, kind: int) -> Iterator[int]:
    """Where the IDs of the presentation contexts stand in an association PDU whose items fit in it."""
    at = _FIXED_BYTES
    while at + 4 <= len(pdu):
        item_type, length = struct.unpack_from(">BxH", pdu, at)
        if item_type == kind and length >= 4:
            yield at + 4
        at += 4 + length


def _places_of_pdvs(pdu: bytes) -> Iterator[int]:
    """Likewise in a P-DATA-TF PDU (PS3.8 section 9.3.5)."""
    at = 6
    while at < len(pdu):
        yield at + 4
        at += 4 + int.from_bytes(pdu[at : at + 4], "big")


def _renumbered(pdu: bytes, places: Iterable[int], ids: Mapping[int, int]) -> bytes:
    content = bytearray(pdu)
    for at in places:
        content[at] = ids.get(content[at], content[at])
    return bytes(content)


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _uid(value: bytes) -> bytes:
    """A UID without padding; empty if it is not a UID."""
    uid = value.split(b"\x00", 1)[0].strip()
    is_uid = 0 < len(uid) <= _LONGEST_UID and all(part.isdigit() for part in uid.split(b"."))
    return uid if is_uid else b""
