"""Which keys of a source belong to its mirror.

One rule: a key belongs when no `exclude` pattern fits it, and, where there are `include` patterns, one of those does.
Patterns are matched against the whole key below the source's prefix: `*` is anything but a slash, `**` anything, `?`
one character but a slash, `[a-z]` one of a set; a pattern that ends with a slash means everything below it.
"""

import re
from collections.abc import Callable, Sequence

Belongs = Callable[[bytes], bool]
"""Takes a key in UTF-8 below the source's prefix."""


def pattern(text: str) -> re.Pattern[str]:
    """The regular expression of one pattern. ValueError for a set that is not closed or is none."""
    expression = []
    text = f"{text}**" if text.endswith("/") else text
    place = 0
    while place < len(text):
        character = text[place]
        if text.startswith("**", place):
            expression.append(".*")
            place += 2
        elif character == "*":
            expression.append("[^/]*")
            place += 1
        elif character == "?":
            expression.append("[^/]")
            place += 1
        elif character == "[":
            end = text.find("]", place + 2)
            if end < 0:
                raise ValueError(f"pattern {text!r}: the set that begins at {place + 1} is not closed with ']'")
            members = text[place + 1 : end]
            negated = members[0] in "!^"
            expression.append(f"[{'^' if negated else ''}{re.escape(members[negated:]).replace(chr(92) + '-', '-')}]")
            place = end + 1
        else:
            expression.append(re.escape(character))
            place += 1
    try:
        return re.compile(f"(?s:{''.join(expression)})")
    except re.error as error:
        raise ValueError(f"pattern {text!r}: a set in it is none ({error})") from error


def belongs(include: Sequence[str], exclude: Sequence[str]) -> Belongs | None:
    """The test for a key, None where every key belongs."""
    if not include and not exclude:
        return None
    wanted = [pattern(text).fullmatch for text in include]
    unwanted = [pattern(text).fullmatch for text in exclude]

    def test(key: bytes) -> bool:
        text = key.decode()
        if any(fits(text) for fits in unwanted):
            return False
        return not wanted or any(fits(text) for fits in wanted)

    return test
