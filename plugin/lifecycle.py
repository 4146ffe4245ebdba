"""What the bucket does by itself with a storage's objects: colder classes with age, an end to forgotten uploads; and thawing.

One rule: rules are ours by their name, `bucketworks/STORAGE/...`, and concern our prefix alone; all others in the bucket stay
as they are. Only backups grow cold: what is listed, compared and read often (sidecars, indexes, images) does not.
Source: Amazon S3 API reference, PutBucketLifecycleConfiguration, RestoreObject.
"""

from typing import Final, Literal

from plugin.configuration import Storage
from plugin.layout import DIRECTORIES
from s3core.bucket import Bucket, ObjectFacts
from s3core.clock import Clock
from s3core.endpoint import PRESETS
from s3core.s3_control import LifecycleRule, S3Control
from s3core.settings import Config
from s3core.write_options import RestoreTier

ABORT_DAYS: Final = 8
"""Longer than an upload is kept for its resume."""
SMALL_BYTES: Final = 128 * 1024
"""Sidecars, which lie beside the backups, are smaller."""
Thaw = Literal["ready", "thawing", "archived"]


def rule_prefix(storage: Storage) -> str:
    """What the names of its rules begin with."""
    return f"bucketworks/{storage.id}/"


def rules_for(storage: Storage) -> list[LifecycleRule]:
    """What the storage's properties ask for; nothing without bw-lifecycle."""
    if not storage.lifecycle:
        return []
    name = rule_prefix(storage)
    rules = [LifecycleRule(f"{name}uploads", storage.prefix, abort_uploads_days=ABORT_DAYS)]
    steps = ((storage.transition_days, storage.transition_class), (storage.glacier_days, storage.glacier_class))
    transitions = tuple((days, storage_class) for days, storage_class in steps if days)
    if transitions:
        backups = f"{storage.prefix}{DIRECTORIES['backup']}/"
        # Others refuse the condition, or pass it over; theirs is no class that a sidecar could not be read from.
        larger = SMALL_BYTES if PRESETS[storage.preset].name == "aws" else 0
        rules.append(LifecycleRule(f"{name}backups", backups, transitions=transitions, larger_than=larger))
    return rules


def apply_rules(control: S3Control, storage: Storage) -> bool:
    """Bring the bucket's rules of ours to what the storage says; whether something was changed. StoreErrors: the server says
    why it takes them not (a class it does not have, days too few for a class)."""
    return control.merge_lifecycle(storage.bucket, rules_for(storage), own=rule_prefix(storage))


def keep_rules(storage: Storage, config: Config, *, clock: Clock | None = None) -> bool:
    """`apply_rules` with a connection of its own. Also ConfigError, CredentialsError."""
    control = S3Control(storage.join(config).endpoint(storage.endpoint_name), clock=clock)
    try:
        return apply_rules(control, storage)
    finally:
        control.close()


def remove_rules(control: S3Control, storage: Storage) -> bool:
    """Before a storage goes; its objects stay as they are."""
    return control.merge_lifecycle(storage.bucket, [], own=rule_prefix(storage))


def thaw_state(facts: ObjectFacts) -> Thaw:
    """ready: it can be read now; thawing: it was asked for; archived: it must be asked for."""
    if not facts.archived:
        return "ready"
    return "thawing" if facts.kept.restoring else "archived"


def thaw(bucket: Bucket, key: str, *, days: int, tier: RestoreTier = "Standard") -> Thaw:
    """Ask for a copy of an archived object that can be read for `days` days; hours later it is there. Asking again is no
    error. ready: it was never archived, or is there. NotFound, StoreErrors."""
    facts = bucket.head(key)
    if not facts.archived:
        if facts.kept.restored_until:
            bucket.restore(key, days=days, tier=tier, version_id=facts.version_id)
        return "ready"
    if facts.kept.restoring:
        return "thawing"
    return "ready" if bucket.restore(key, days=days, tier=tier, version_id=facts.version_id) else "thawing"
