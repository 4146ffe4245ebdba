"""The bucket of an episode, and what stands between it and one process.

One rule: the bucket remembers the first version of every log record, root and map page it ever held, and tells only the
oracle: so the whole history can be replayed after the engine has trimmed it.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from s3core.errors import StoreError, Unavailable
from s3core.memory import MemoryStore
from s3core.store import Body, Buffer
from s3core.wrapper import Call, StoreWrapper

T = TypeVar("T")
KEPT = ("/log/", "/root/", "/page/")


class RememberingStore(MemoryStore):
    """`remembered`: key -> first content, of everything below KEPT."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]  # whatever it takes
        self.remembered: dict[str, bytes] = {}
        self.deleted: set[str] = set()

    def delete(self, key: str) -> None:
        super().delete(key)
        self.deleted.add(key)

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        etag = super().put(key, data, metadata=metadata)
        self._remember(key)
        return etag

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        etag = super().put_if_absent(key, data, metadata=metadata)
        self._remember(key)
        return etag

    def _remember(self, key: str) -> None:
        if any(part in key for part in KEPT) and key not in self.remembered:
            self.remembered[key] = self.get(key).data


class Remembered(StoreWrapper):
    """Reads of one volume's part: what was deleted is still there."""

    def __init__(self, inner: MemoryStore, remembered: dict[str, bytes], prefix: str) -> None:
        super().__init__(inner)
        self._remembered = remembered
        self._prefix = prefix

    def get(self, key: str) -> Body:
        data = self._remembered.get(self._prefix + key)
        return Body(data, "") if data is not None else self.inner.get(key)

    def get_range(self, key: str, offset: int, length: int) -> Body:
        data = self._remembered.get(self._prefix + key)
        return (
            Body(data[offset : offset + length], "") if data is not None else self.inner.get_range(key, offset, length)
        )


class Gate(StoreWrapper):
    """The way of one process to the store. `shut`: nothing passes."""

    shut = False

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if self.shut:
            raise Unavailable("injected: this host does not reach the store", key=call.key)
        return action()

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        try:
            return super()._delete_batch(keys)
        except Unavailable as error:
            return dict.fromkeys(keys, error)
