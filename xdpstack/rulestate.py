"""The rules in force with their ids and groups, as the filter keeps them beside its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from xdpstack._ffi import lib
from xdpstack.errors import CapacityError, ConfigError
from xdpstack.rules import GROUP, Rule, parse_rule, parse_rules

__all__ = ["RuleLike", "RuleState", "as_rules"]

RuleLike = str | Rule


@dataclass(frozen=True, slots=True)
class RuleState:
    """Everything about the rules that the tables do not say; kept beside them in the same map value."""

    rules: tuple[Rule, ...] = ()
    groups: dict[str, int] = field(default_factory=dict)
    next_id: int = 1

    def encode(self) -> bytes:
        """As it lies in the tables' notes."""
        rules = [[rule.id, str(rule)] for rule in self.rules]
        return json.dumps({"rules": rules, "groups": self.groups, "next_id": self.next_id}).encode()

    @classmethod
    def decode(cls, data: bytes) -> RuleState:
        """What :meth:`encode` gave."""
        notes = json.loads(data)
        rules = tuple(replace(parse_rule(text), id=number) for number, text in notes["rules"])
        return cls(rules, notes["groups"], notes["next_id"])

    def group(self, name: str) -> tuple[RuleState, int]:
        """The number of a group, a new one where it has none yet."""
        if not GROUP.fullmatch(name) or name in ("pass", "drop", "count"):
            raise ConfigError(
                f"{name!r} is not the name of a socket group (letters, digits, _ and -, up to 31)"
            )
        if name in self.groups:
            return self, self.groups[name]
        free = set(range(lib.XDS_GROUPS_MAX)) - set(self.groups.values())
        if not free:
            raise CapacityError(f"at most {lib.XDS_GROUPS_MAX} socket groups fit")
        return replace(self, groups={**self.groups, name: min(free)}), min(free)

    def with_rules(self, rules: Sequence[Rule]) -> tuple[RuleState, list[int]]:
        """These rules, in this order. Returns the ids that are new, whose counters start at zero."""
        state, taken = self, {rule.id for rule in (*self.rules, *rules)}
        numbered, fresh = [], []
        for rule in rules:
            if rule.group is not None:
                state, _ = state.group(rule.group)
            if not rule.id:
                number = state.next_id
                while number in taken:
                    number = number % (lib.XDS_RULE_IDS - 1) + 1
                taken.add(number)
                fresh.append(number)
                state = replace(state, next_id=number % (lib.XDS_RULE_IDS - 1) + 1)
                rule = replace(rule, id=number)
            numbered.append(rule)
        return replace(state, rules=tuple(numbered)), fresh


def as_rules(rules: str | Sequence[RuleLike]) -> list[Rule]:
    """Rules as a text, or one by one, without ids. Raises ConfigError."""
    if isinstance(rules, str):
        return [replace(rule, id=0) for rule in parse_rules(rules)]
    parsed = [parse_rule(r, f"rule {i}") if isinstance(r, str) else r for i, r in enumerate(rules, 1)]
    return [replace(rule, id=0) for rule in parsed]
