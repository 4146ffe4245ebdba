"""Sizes and durations as people write them: `10G`, `64MiB`, `5s`, `2min`.

One rule: what is read exactly is written exactly; nothing is rounded. A letter alone and the `iB` units count in powers
of 1024, as LVM and QEMU do; `kB`, `MB`, `GB`, `TB` count in powers of 1000.
"""

import re
from decimal import Decimal

_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_BINARY = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SECONDS = {
    "": Decimal(1),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "sec": Decimal(1),
    "min": Decimal(60),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}


def parse_size(value: object) -> int:
    """Bytes out of `10G`, `64MiB`, `1.5T`, `500MB` or a whole number; ValueError says what would be understood."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    factor = _size_factor(found.group(2)) if found else None
    if found is None or factor is None:
        raise ValueError(f"{value!r} is not a size; write bytes or a number with K, M, G or T, such as 10G or 64MiB")
    size = Decimal(found.group(1)) * factor
    if size != int(size):
        raise ValueError(f"{value!r} is not a whole number of bytes")
    return int(size)


def parse_duration(value: object) -> float:
    """Seconds out of `5s`, `500ms`, `2min`, `1h`, `1d` or a plain number; ValueError says what would be understood."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    factor = _SECONDS.get(found.group(2).lower()) if found else None
    if found is None or factor is None:
        raise ValueError(
            f"{value!r} is not a duration; write seconds or a number with ms, s, min, h or d, such as 5s or 2min"
        )
    return float(Decimal(found.group(1)) * factor)


def shown_size(size: int) -> str:
    """The way tools print sizes: exact where a binary unit fits (`10 GiB`), else with one decimal (`1.5 GiB`)."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if amount == int(amount) else f"{amount:.1f} {unit}"


def written_size(size: int) -> str:
    """The shortest text `parse_size` reads back as exactly `size`: `10G`, `512M`, `1000`."""
    for letter, power in reversed(_BINARY.items()):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{letter.upper()}"
    return str(size)


def shown_duration(seconds: float) -> str:
    """The way tools print durations: `250 ms`, `5 s`, `2 min`, `1 h 5 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 120 and seconds != 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours and minutes else f"{hours} h" if hours else f"{minutes} min"


def _size_factor(unit: str) -> int | None:
    word = unit.lower()
    if word in ("", "b"):
        return 1
    base = 1000 if word.endswith("b") and not word.endswith("ib") else 1024
    letter = word.removesuffix("b").removesuffix("i") if len(word) > 1 else word
    factor: int | None = base ** _BINARY[letter] if len(letter) == 1 and letter in _BINARY else None
    return factor
