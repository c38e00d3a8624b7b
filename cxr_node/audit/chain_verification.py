"""The findings of a verification of the audit log."""

from __future__ import annotations

from dataclasses import dataclass, field

from cxr_node.records import quantity


@dataclass(frozen=True)
class ChainDefect:
    """One thing that isn't as it was chained or signed.

    kind: changed, swapped, removed, put in, cut off, rewritten, forged, or not verified.
    seq: the link; audit_id: the row. 0 where there is none.
    """

    kind: str
    text: str
    seq: int = 0
    audit_id: int = 0


@dataclass
class ChainVerification:
    """What a look through a chain found; whole if nothing. `signed`: the links that checkpoints sign."""

    first_seq: int = 0
    last_seq: int = 0
    rows: int = 0
    checkpoints: int = 0
    signed_to: int = 0
    signed: set[int] = field(default_factory=set)
    findings: list[ChainDefect] = field(default_factory=list)

    @property
    def text(self) -> str:
        """One sentence: the first finding, or the extent of the check."""
        if self.findings:
            more = f" (and {len(self.findings) - 1} more)" if len(self.findings) > 1 else ""
            return self.findings[0].text + more
        return (
            f"Links {self.first_seq} to {self.last_seq}, {quantity(self.rows, 'row')}: all unchanged; "
            f"{quantity(self.checkpoints, 'checkpoint')}, signed to link {self.signed_to}."
        )
