"""Whose object a key names: a clone reads what was there when it was made from its ancestors, where they wrote it.

One rule: the number in a key decides. A clone's log goes on after its origin's snapshot, so an object whose number (the
commit it was born in) is not above an origin's belongs to that ancestor; younger ones are the clone's own. Ancestors are
read, never changed.

    origin = (G at 10, P at 20):   1..10 in v1/G/     11..20 in v1/P/     21.. in the clone's own part
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar
from uuid import UUID

from blockdev.segments import paths
from blockdev.segments.volume_file import Origin, VolumeFile
from s3core.errors import StoreError
from s3core.prefixed import PrefixedStore
from s3core.store import Body, ObjectInfo, ObjectStore
from s3core.wrapper import READS, Call, StoreWrapper

T = TypeVar("T")


class VolumePart(PrefixedStore):
    """A volume's own part of a store, which remembers the whole: a clone's ancestors lie beside it."""

    def __init__(self, whole: ObjectStore, name: str) -> None:
        super().__init__(whole, paths.volume_prefix(name))
        self.whole = whole


class Ancestry:
    """Which volume an object of this one belongs to. Pure."""

    def __init__(self, volume: VolumeFile) -> None:
        self._own = volume.identity
        self._origin = volume.origin
        self.last = volume.origin[-1].seq if volume.origin else 0
        """The last commit that is an ancestor's; 0 for a volume that is no clone."""

    def owner(self, number: int) -> Origin | None:
        """The ancestor whose commit `number` is; None: the volume's own."""
        if number <= self.last:
            for origin in self._origin:
                if number <= origin.seq:
                    return origin
        return None

    def identity_of(self, number: int) -> UUID:
        """The volume that commit `number` is of."""
        owner = self.owner(number)
        return self._own if owner is None else owner.identity

    def volume_of(self, gen: int) -> bytes:
        """The UUID that frames of this generation are bound to."""
        return self.identity_of(gen).bytes


def with_ancestors(own: ObjectStore, volume: VolumeFile) -> ObjectStore:
    """The volume's own part as its engine is to see it. `own` of a clone must be a `VolumePart`."""
    if not volume.origin:
        return own
    if not isinstance(own, VolumePart):
        raise TypeError(f"volume {volume.name} is a clone: its ancestors cannot be reached from {type(own).__name__}")
    return AncestorStore(own, own.whole, volume)


class AncestorStore(StoreWrapper):
    """Reads go to the volume that wrote the object; changes of an ancestor's object are refused; listings tell of the
    volume's own part alone. Errors name the key with the volume it was looked for in."""

    def __init__(self, own: ObjectStore, whole: ObjectStore, volume: VolumeFile) -> None:
        super().__init__(own)
        self._ancestry = Ancestry(volume)
        self._parts = {origin.identity: VolumePart(whole, origin.name) for origin in volume.origin}

    def get(self, key: str) -> Body:
        return self._holder(key).get(key)

    def get_range(self, key: str, offset: int, length: int) -> Body:
        return self._holder(key).get_range(key, offset, length)

    def head(self, key: str) -> ObjectInfo:
        return self._holder(key).head(key)

    def copy(self, source: str, target: str) -> str:
        self._require_own([source])
        return super().copy(source, target)

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        self._require_own(keys)
        return super()._delete_batch(keys)

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation not in READS:
            self._require_own([call.key])
        return action()

    def _holder(self, key: str) -> ObjectStore:
        owner = self._owner(key)
        return self.inner if owner is None else self._parts[owner.identity]

    def _owner(self, key: str) -> Origin | None:
        number = paths.number_of(key)
        return None if number is None else self._ancestry.owner(number)

    def _require_own(self, keys: Iterable[str]) -> None:
        for key in keys:
            owner = self._owner(key)
            if owner is not None:
                raise AssertionError(f"a clone was about to change {key} of its ancestor {owner.name}")
