"""What a PromQL expression selects: its metrics with the labels they are matched by, and the labels it groups by.

One rule: whether it is PromQL at all is promtool's judgement; this reads names out of what promtool has accepted.
"""

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)|(?P<range>\[[^\]]*\])"""
    r"""|(?P<number>[0-9.]+(?:e[0-9]+)?[smhdwy]?)|(?P<mark>=~|!~|!=|==|>=|<=|[-+*/%^(){},=<>@])|(?P<space>\s+)"""
)
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = _LISTS | {"and", "or", "unless", "bool", "offset"}


@dataclass(slots=True)
class Selected:
    """`matched` are label names by metric; `grouped` those in lists after by, on and the like."""

    matched: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    values: dict[tuple[str, str], str] = field(default_factory=dict)
    """By metric and label, what it is compared with."""


def selected(expression: str) -> Selected:
    """ValueError for a character that PromQL has not."""
    tokens = _tokens(expression)
    found = Selected()
    index, listing, metric = 0, False, ""
    while index < len(tokens):
        kind, text = tokens[index]
        following = tokens[index + 1][1] if index + 1 < len(tokens) else ""
        if kind == "name" and text in _LISTS:
            listing = following == "("
        elif kind == "name" and listing:
            found.grouped.add(text)
        elif kind == "name" and text not in _WORDS and following not in ("(",) and not _is_aggregation(tokens, index):
            metric = text
            found.matched.setdefault(metric, set())
        elif text == ")":
            listing = False
        elif text == "{":
            index += 1
            while tokens[index][1] != "}":
                if tokens[index][0] == "name":
                    found.matched[metric].add(tokens[index][1])
                    found.values[metric, tokens[index][1]] = tokens[index + 2][1][1:-1]
                    index += 2
                index += 1
        index += 1
    return found


def outer_grouping(expression: str) -> set[str] | None:
    """The labels that the result has where the outermost operation aggregates `by`; None where it keeps those of its parts."""
    told = re.match(r"(?:sum|max|min|count|avg) by \(([^)]*)\)", expression)
    if told:
        return {label.strip() for label in told[1].split(",")}
    return set() if re.match(r"(?:sum|max|min|count|avg)\(", expression) else None


def _is_aggregation(tokens: list[tuple[str, str]], index: int) -> bool:
    """`sum by (...) (...)`: the name of the operation stands before the list."""
    return index + 1 < len(tokens) and tokens[index + 1][1] in ("by", "without")


def _tokens(expression: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(expression):
        told = _TOKEN.match(expression, at)
        if told is None:
            raise ValueError(f"{expression!r}: what is {expression[at]!r} at {at}?")
        at = told.end()
        if told.lastgroup != "space":
            found.append((str(told.lastgroup), told[0]))
    return found
