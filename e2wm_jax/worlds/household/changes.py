"""What one line of a script did to the household, and how records write it down."""

from dataclasses import dataclass
from typing import Any

Edge = tuple[int, str, int]  # from id, relation, to id
NodeState = tuple[int, str]  # node id, state


@dataclass(frozen=True)
class Step:
    """One executed script line: what was asked, whether it worked, what it changed.

    A failed line changes nothing; ``ok`` with messages exists (VirtualHome reports some failed checks but proceeds).
    """

    action: str  # "[Walk] <home_office> (319)"
    ok: bool
    messages: tuple[str, ...] = ()  # without the " when executing ..." suffix
    exception: str | None = None  # class name, where the executor itself crashed
    edges_added: tuple[Edge, ...] = ()
    edges_removed: tuple[Edge, ...] = ()
    states_added: tuple[NodeState, ...] = ()
    states_removed: tuple[NodeState, ...] = ()
    actor: int = 0  # which person, in an episode of several

    def to_json(self) -> dict[str, Any]:
        """The step with short keys: a, by, ok, exc, msg, e+, e-, s+, s-; those without content are left out."""
        record: dict[str, Any] = {"a": self.action, "ok": int(self.ok)}
        if self.actor:
            record["by"] = self.actor
        if self.exception is not None:
            record["exc"] = self.exception
        if self.messages:
            record["msg"] = list(self.messages)
        for key, changes in (
            ("e+", self.edges_added),
            ("e-", self.edges_removed),
            ("s+", self.states_added),
            ("s-", self.states_removed),
        ):
            if changes:
                record[key] = [list(change) for change in changes]
        return record

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Step":
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError where a field is missing or malformed."""
        return Step(
            action=record["a"],
            ok=bool(record["ok"]),
            messages=tuple(record.get("msg", ())),
            exception=record.get("exc"),
            edges_added=tuple((int(a), str(r), int(b)) for a, r, b in record.get("e+", ())),
            edges_removed=tuple((int(a), str(r), int(b)) for a, r, b in record.get("e-", ())),
            states_added=tuple((int(n), str(s)) for n, s in record.get("s+", ())),
            states_removed=tuple((int(n), str(s)) for n, s in record.get("s-", ())),
            actor=int(record.get("by", 0)),
        )
