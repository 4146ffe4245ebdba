"""What was read lately, as long as it is not too much: bounded by bytes, because guests decide how large
their documents are."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """What `read` gave for a key, at most `most` bytes of it by `size_of`, and the last one whatever its size; what was not
    asked for the longest goes first. For what never changes. Safe for many threads; two may read the same."""

    def __init__(self, read: Callable[[Key], Value], size_of: Callable[[Value], int], most: int) -> None:
        self._read, self._size_of, self._most = read, size_of, most
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.bytes = 0
        self.reads = 0

    def __call__(self, key: Key) -> Value:
        """As `read`, with its errors, which are not kept."""
        with self._lock:
            held = self._values.get(key)
            if held is not None:
                self._values.move_to_end(key)
                return held[0]
        value = self._read(key)
        size = self._size_of(value)
        with self._lock:
            self.reads += 1
            if key not in self._values:
                self._values[key] = value, size
                self.bytes += size
            while self.bytes > self._most and len(self._values) > 1:
                _, (_, gone) = self._values.popitem(last=False)
                self.bytes -= gone
        return value

    def __len__(self) -> int:
        return len(self._values)
