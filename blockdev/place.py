"""From what people type to a volume: a name out of the configuration, or a URL whose last part is the volume's name.

One rule: the same words mean the same volume in every command. A place in a store holds any number of volumes, each below
`v1/NAME/`; what is said about a volume in the configuration counts however the volume is named.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blockdev.engine.ancestry import VolumePart
from s3core.build import build_store, parse_store_url
from s3core.settings import Config, VolumeSettings
from s3core.store import ObjectStore

NAME_LENGTH_MAX = 63
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_FORMS = "s3://ENDPOINT/BUCKET/PREFIX/NAME or file:///DIRECTORY/NAME"


@dataclass(frozen=True, slots=True)
class VolumePlace:
    """Where a volume is, and its settings with every default filled in. `text` is how the user named it."""

    text: str
    store_url: str
    name: str
    settings: VolumeSettings

    @property
    def url(self) -> str:
        """The volume as a URL, however it was named."""
        return f"{self.store_url}/{self.name}"

    @property
    def state_dir(self) -> Path:
        return Path(self.settings.state_dir)


def check_name(name: str) -> str:
    """Returns `name`; ValueError when no volume may be called that."""
    if not _NAME.fullmatch(name) or len(name) > NAME_LENGTH_MAX:
        raise ValueError(
            f"{name!r} is no name for a volume: use a-z, 0-9, '.' and '-', at most {NAME_LENGTH_MAX}, beginning with a "
            "letter or digit"
        )
    return name


def is_url(text: str) -> bool:
    return "://" in text or text.startswith("memory:")


def resolve(
    config: Config, text: str, *, environ: Mapping[str, str] | None = None, user: int | None = None
) -> VolumePlace:
    """The volume that `text` means. ConfigError for a name nobody configured, ValueError for what is neither.

    `environ` and `user` (a user id) decide where state is kept when the configuration does not; by default the
    process's own."""
    if is_url(text):
        store_url, name = _split(text)
        known = config.volumes.get(name)
        found = known if known is not None and _plain(known.url) == store_url else VolumeSettings(url=store_url)
    else:
        name = check_name(text)
        store_url = _plain(config.volume(name).url)
        found = config.volumes[name]
    parse_store_url(store_url)
    state_dir = found.state_dir or str(state_root(config, environ, user) / name)
    settings = config.with_defaults(name, found.model_copy(update={"state_dir": state_dir}))
    return VolumePlace(text, store_url, name, settings)


def open_store(config: Config, store_url: str) -> ObjectStore:
    """The store that holds volumes. Nothing is contacted yet. ConfigError, CredentialsError."""
    return build_store(store_url, config=config)


def volume_store(store: ObjectStore, name: str) -> ObjectStore:
    """The part of `store` that is the volume's own."""
    return VolumePart(store, name)


def _plain(url: str) -> str:
    return url.rstrip("/")


def _split(url: str) -> tuple[str, str]:
    place, _, name = _plain(url).rpartition("/")
    try:
        parse_store_url(place)
    except ValueError as error:
        raise ValueError(f"{url!r} names no volume in a store; write {_FORMS}") from error
    return _plain(place), check_name(name)


def state_root(config: Config, environ: Mapping[str, str] | None = None, user: int | None = None) -> Path:
    """The folder of all state directories: as configured; for an ordinary user without one, below the home directory
    (XDG Base Directory Specification: XDG_STATE_HOME, which counts only if absolute)."""
    environ = os.environ if environ is None else environ
    user = os.geteuid() if user is None else user
    if user == 0 or "state_dir" in config.s3block.model_fields_set:
        return Path(config.s3block.state_dir)
    home = Path(environ.get("XDG_STATE_HOME", ""))
    if not home.is_absolute():
        home = Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return home / "bucketworks"


def state_directories(root: Path) -> dict[str, Path]:
    """Those of volumes that are or were served from `root`, by their names. Other tools keep folders there, too, some with a
    lock; none has a journal."""
    return {
        path.name: path for path in sorted(root.iterdir()) if (path / "lock").exists() and (path / "journal").exists()
    }
