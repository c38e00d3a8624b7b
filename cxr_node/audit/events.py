"""The standard message for each of the node's events (PS3.15 A.5.3); docs/conformance.md contains this table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Code(NamedTuple):
    """A code of the DICOM Controlled Terminology (PS3.16 annex D)."""

    value: str
    meaning: str


class MessageKind(StrEnum):
    """The messages of PS3.15 A.5.3 that the node sends; the value is the code of its EventID (CID 400)."""

    APPLICATION_ACTIVITY = "110100"
    AUDIT_LOG_USED = "110101"
    BEGIN_TRANSFERRING = "110102"
    INSTANCES_ACCESSED = "110103"
    INSTANCES_TRANSFERRED = "110104"
    STUDY_DELETED = "110105"
    EXPORT = "110106"
    IMPORT = "110107"
    NETWORK_ENTRY = "110108"
    ORDER_RECORD = "110109"
    PATIENT_RECORD = "110110"
    PROCEDURE_RECORD = "110111"
    QUERY = "110112"
    SECURITY_ALERT = "110113"
    USER_AUTHENTICATION = "110114"


NAMES = {
    MessageKind.APPLICATION_ACTIVITY: "Application Activity",
    MessageKind.AUDIT_LOG_USED: "Audit Log Used",
    MessageKind.BEGIN_TRANSFERRING: "Begin Transferring DICOM Instances",
    MessageKind.INSTANCES_ACCESSED: "DICOM Instances Accessed",
    MessageKind.INSTANCES_TRANSFERRED: "DICOM Instances Transferred",
    MessageKind.STUDY_DELETED: "DICOM Study Deleted",
    MessageKind.EXPORT: "Export",
    MessageKind.IMPORT: "Import",
    MessageKind.NETWORK_ENTRY: "Network Entry",
    MessageKind.ORDER_RECORD: "Order Record",
    MessageKind.PATIENT_RECORD: "Patient Record",
    MessageKind.PROCEDURE_RECORD: "Procedure Record",
    MessageKind.QUERY: "Query",
    MessageKind.SECURITY_ALERT: "Security Alert",
    MessageKind.USER_AUTHENTICATION: "User Authentication",
}

START, STOP = Code("110120", "Application Start"), Code("110121", "Application Stop")
LOGIN, LOGOUT = Code("110122", "Login"), Code("110123", "Logout")
ATTACH, DETACH = Code("110124", "Attach"), Code("110125", "Detach")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
SOFTWARE_CONFIGURATION = Code("110131", "Software Configuration")
RESTRICTED_FUNCTION = Code("110132", "Use of Restricted Function")
OBJECT_SECURITY = Code("110135", "Object Security Attributes Changed")
SECURITY_ROLES = Code("110136", "Security Roles Changed")
USER_SECURITY = Code("110137", "User security Attributes Changed")


@dataclass(frozen=True)
class Form:
    """The form of an event's message.

    kind: the message.
    action: EventActionCode: C, R, U, D or E.
    type: EventTypeCode, where there is one.
    peer: what the event's `user` is: the `source` or the `destination` of what is moved, a `person` or process that asked
        for it, or the one that `attempted` it.
    told: a phrase for people, which follows "the node" or stands for itself: see `audit.sentences`.
    """

    kind: MessageKind
    action: str
    told: str
    type: Code | None = None
    peer: str = "person"


def _transfer(action: str, told: str, peer: str = "source") -> Form:
    return Form(MessageKind.INSTANCES_TRANSFERRED, action, told, peer=peer)


def _accessed(action: str, told: str) -> Form:
    return Form(MessageKind.INSTANCES_ACCESSED, action, told)


def _procedure(action: str, told: str) -> Form:
    return Form(MessageKind.PROCEDURE_RECORD, action, told)


def _alert(code: Code, told: str, peer: str = "person") -> Form:
    return Form(MessageKind.SECURITY_ALERT, "E", told, code, peer)


def _login(code: Code, told: str) -> Form:
    return Form(MessageKind.USER_AUTHENTICATION, "E", told, code)


def _log_used(told: str) -> Form:
    return Form(MessageKind.AUDIT_LOG_USED, "R", told)


EVENTS: dict[str, Form] = {
    # the node
    "node-started": Form(MessageKind.APPLICATION_ACTIVITY, "E", "{user} started the node", START),
    "node-stopped": Form(MessageKind.APPLICATION_ACTIVITY, "E", "the node stopped", STOP),
    "network-attached": Form(MessageKind.NETWORK_ENTRY, "E", "the node opened its port", ATTACH),
    "network-detached": Form(MessageKind.NETWORK_ENTRY, "E", "the node closed its port", DETACH),
    "settings-changed": _alert(SOFTWARE_CONFIGURATION, "the node started with changed settings"),
    "drain-begun": _alert(SOFTWARE_CONFIGURATION, "{user} stopped the acceptance of new images"),
    "drain-ended": _alert(SOFTWARE_CONFIGURATION, "{user} resumed the acceptance of new images"),
    # what comes in
    "instance-received": _transfer("C", "{user} sent an image"),
    "instance-refused": _transfer("C", "an image of {user} was refused"),
    "instance-unparsed": _transfer("C", "an image of {user} could not be parsed"),
    "instance-same": _transfer("R", "the same image arrived again in another encoding"),
    "instance-superseded": _accessed("U", "a corrected image arrived and replaces the earlier one"),
    "revision-held": _accessed("R", "another image of {user} came under a known UID and is held for an operator"),
    "uid-used-again": _alert(RESTRICTED_FUNCTION, "{user} sent different content under a known UID", "attempted"),
    "commitment-requested": _accessed("R", "{user} requested storage commitment"),
    "commitment-refused": _accessed("R", "a request of {user} for storage commitment was refused"),
    "association-refused": _alert(NODE_AUTHENTICATION, "an association of {user} was refused", "attempted"),
    # analysis
    "job-done": _accessed("C", "the image was analysed"),
    "job-rejected": _accessed("R", "the image was rejected"),
    "job-failed": _accessed("R", "the analysis failed"),
    "job-held": _accessed("R", "the analysis was held for an operator"),
    "job-retried": _procedure("U", "{user} had the image analysed again"),
    "job-cancelled": _procedure("U", "{user} cancelled the analysis"),
    # what goes out
    "transfer-begun": Form(MessageKind.BEGIN_TRANSFERRING, "E", "results are being sent to {user}", peer="destination"),
    "result-sent": _transfer("C", "a result was sent to {user}", "destination"),
    "result-warning": _transfer("C", "{user} warned about a result", "destination"),
    "result-delayed": _transfer("C", "a result could not be sent to {user} and will be retried", "destination"),
    "result-held": _transfer("C", "a result for {user} was held for an operator", "destination"),
    "result-cancelled": _transfer(
        "C", "a result was not sent to {user}, because the settings no longer require it", "destination"
    ),
    "result-committed": _transfer("R", "{user} committed to a result", "destination"),
    "result-not-kept": _transfer("R", "{user} did not commit to a result", "destination"),
    "commitment-given-up": _transfer("R", "the node stopped waiting for storage commitment of {user}", "destination"),
    "deliveries-added": _procedure("U", "results were queued for further destinations"),
    "delivery-retried": _procedure("U", "{user} had a result sent again"),
    "delivery-cancelled": _procedure("U", "{user} cancelled the delivery of a result"),
    # what is removed, copied and mended
    "instance-removed": _accessed("D", "the image was removed"),
    "study-removed": Form(MessageKind.STUDY_DELETED, "D", "the last image of the study was removed"),
    "retention": _accessed("D", "expired files were removed"),
    "store-mended": _accessed("U", "{user} repaired files and rows"),
    "store-examined": _accessed("R", "{user} checked the data folder for damage"),
    "database-backed-up": Form(MessageKind.EXPORT, "R", "the database was backed up"),
    "database-restored": Form(MessageKind.IMPORT, "C", "{user} restored a backup"),
    "database-copied": Form(MessageKind.EXPORT, "R", "{user} copied the database"),
    "files-analysed": Form(MessageKind.IMPORT, "C", "{user} analysed files"),
    # people
    "queue-viewed": Form(MessageKind.QUERY, "E", "{user} viewed the queue"),
    "studies-searched": Form(MessageKind.QUERY, "E", "{user} searched for studies"),
    "user-logged-in": _login(LOGIN, "{user} logged in"),
    "login-refused": _login(LOGIN, "{user} failed to log in"),
    "user-logged-out": _login(LOGOUT, "{user} logged out"),
    "user-added": _alert(USER_SECURITY, "{user} added a user"),
    "user-disabled": _alert(USER_SECURITY, "{user} disabled a user"),
    "user-enabled": _alert(USER_SECURITY, "{user} enabled a user"),
    "user-password-set": _alert(USER_SECURITY, "{user} set a password"),
    "user-role-set": _alert(SECURITY_ROLES, "{user} changed a user's role"),
    "token-created": _alert(USER_SECURITY, "{user} created a token"),
    "token-revoked": _alert(USER_SECURITY, "{user} revoked a token"),
    "access-refused": _alert(RESTRICTED_FUNCTION, "{user} was refused access", "attempted"),
    "images-viewed": _accessed("R", "{user} viewed images or results"),
    "reading-noted": _accessed("U", "{user} recorded a reading"),
    "readings-exported": Form(MessageKind.EXPORT, "R", "{user} exported readings"),
    "set-up-checked": _alert(RESTRICTED_FUNCTION, "{user} ran a check of the installation"),
    "revision-accepted": _procedure("U", "{user} accepted changed content"),
    "destination-tried": _alert(RESTRICTED_FUNCTION, "{user} tested a destination"),
    "file-analysed": Form(MessageKind.IMPORT, "C", "{user} had a file analysed"),
    # the log itself
    "audit-searched": _log_used("{user} searched the audit log"),
    "audit-verified": _log_used("the audit log was verified"),
    "audit-copy-verified": _log_used("a backup or an archive of the audit log was verified"),
    "audit-exported": Form(MessageKind.EXPORT, "R", "{user} exported the audit log"),
    "audit-purged": _alert(OBJECT_SECURITY, "{user} removed exported rows from the audit log"),
    "audit-checkpoint": _log_used("the audit log was signed"),
    "audit-tampered": _alert(OBJECT_SECURITY, "the audit log was tampered with"),
}
"""The form of each event. Of an event that is not here, see `form_of`."""

_UNKNOWN = _alert(SOFTWARE_CONFIGURATION, "an event happened")


def form_of(event: str) -> Form:
    """The form of an event's message; an unknown event of another release becomes an alert about the software."""
    return EVENTS.get(event, _UNKNOWN)


def conformance_table() -> str:
    """The table as docs/conformance.md prints it, in Markdown."""
    peers = {"source": "source", "destination": "destination", "person": "requestor", "attempted": "alert subject"}
    lines = ["| Audit event | Message | EventActionCode | EventTypeCode | The event's user is |", "|---|---|---|---|---|"]
    for event, form in EVENTS.items():
        kind = f"{form.kind.value} {NAMES[form.kind]}"
        code = f"{form.type.value} {form.type.meaning}" if form.type else ""
        lines.append(f"| `{event}` | {kind} | {form.action} | {code} | {peers[form.peer]} |")
    return "\n".join(lines) + "\n"
