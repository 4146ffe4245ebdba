"""What is wrong with a configuration, beyond what reading it refuses: tables that contradict each other, and a host that does
not have what they name.

One rule: a fault is what would keep a tool from working, or has two of them write to one place; a warning is what works today
and hurts later. Nothing is contacted and nothing is written; keys are not read. `examine_online` asks the endpoints.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_address
from itertools import combinations
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel

from s3core.build import parse_store_url
from s3core.config_versions import HISTORY, History
from s3core.endpoint import PRESETS
from s3core.exit_codes import ExitCode
from s3core.findings import Finding
from s3core.settings import Config, ConfigError, PriceSettings

MOUNTS = Path("/proc/self/mountinfo")
FORGETTING = frozenset({"tmpfs", "ramfs"})
DISTANT = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone"}
)
_SECRET_FILES = ("file:", "passphrase-file:")


@dataclass(frozen=True, slots=True)
class Listening:
    """Who listens where. Volumes that one portal serves have one `service`."""

    service: str
    setting: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Directory:
    setting: str
    path: Path


def examine(config: Config, *, mounts: str | None = None) -> list[Finding]:
    """Everything found, worst first. `mounts` stands for /proc/self/mountinfo."""
    found: list[Finding] = []
    table = mounts if mounts is not None else _read_mounts()
    for look in (_endpoints, _places, _ports, _secrets, _prices, _exposed):
        found += look(config)
    found += _directories(config, table)
    order = ("fault", "warning", "note", "ok")
    return sorted(found, key=lambda one: order.index(one.verdict))


def examine_version(version: int, history: History = HISTORY) -> list[Finding]:
    """For a file of an older version."""
    if version >= history.current:
        return []
    steps = "; ".join(change.said for change, _ in history.steps(version, history.current))
    said = f"the file is of version {version}; {history.current} is current: {steps}"
    return [Finding("version", "warning", said, "run `bucketworks config migrate`")]


def examine_online(config: Config, ask: Callable[[str, str], Iterable[Finding]]) -> list[Finding]:
    """`ask(endpoint, bucket)` for every bucket that the configuration names, and for endpoints of which it names none."""
    buckets = {
        (place.name, place.bucket)
        for _, url in _urls(config)
        if (place := parse_store_url(url)).scheme == "s3" and place.name in config.endpoints
    }
    named = {name for name, _ in buckets}
    found: list[Finding] = []
    for name, bucket in sorted(buckets | {(name, "") for name in config.endpoints if name not in named}):
        try:
            found += ask(name, bucket)
        except ConfigError as error:
            found.append(Finding(name, "fault", str(error), error.hint, ExitCode.CONFIGURATION))
    return found


def exit_code_of_findings(findings: Iterable[Finding]) -> ExitCode:
    """CONFIGURATION with faults (UNAVAILABLE and the like where an endpoint had them), FINDING with warnings alone."""
    verdicts = {finding.verdict for finding in findings}
    if "fault" in verdicts:
        return next(finding.code for finding in findings if finding.verdict == "fault")
    return ExitCode.FINDING if "warning" in verdicts else ExitCode.OK


# --- what tables say of each other -----------------------------------------------------------------------------------


def _endpoints(config: Config) -> Iterator[Finding]:
    used: set[str] = set()
    for setting, url in _urls(config):
        try:
            place = parse_store_url(url)
        except ValueError as error:
            yield _fault(setting, str(error))
            continue
        if place.scheme != "s3":
            continue
        used.add(place.name)
        if place.name not in config.endpoints:
            close = get_close_matches(place.name, config.endpoints, n=1)
            cure = f"did you mean s3://{close[0]}/...?" if close else f"bucketworks endpoint create {place.name}"
            yield _fault(setting, f"{url}: there is no [endpoint.{place.name}]", cure)
    for name in config.endpoints:
        if name not in used:
            yield Finding(
                f"endpoint.{name}", "note", "no table names a place in it; tools may be given one on the command line"
            )


def _places(config: Config) -> Iterator[Finding]:
    """Two that write to one place, and a place that lies in another's."""
    # A store holds any number of volumes, each in a folder of its name: that folder is the volume's place.
    writers = [(f"volume.{name}", "url", f"{one.url.rstrip('/')}/v1/{name}") for name, one in config.volumes.items()]
    writers += [(f"mirror.{name}", "target", one.target) for name, one in config.mirrors.items()]
    writers += [(f"ledger.{name}", "url", one.url) for name, one in config.ledgers.items()]
    writers += [("envctl", "homes", config.envctl.homes)] if config.envctl.homes else []
    writers += [("status", "publish", config.status.publish)] if config.status.publish else []
    known = [(f"{table}.{setting}", _whereabouts(config, url), url) for table, setting, url in writers]
    for (first, place, url), (second, other, _) in combinations([one for one in known if one[1]], 2):
        if place == other:
            yield _fault(second, f"is the place of {first}: {url}", "give each a place of its own")
        elif _lies_in(place, other) or _lies_in(other, place):
            inner, outer = (first, second) if _lies_in(place, other) else (second, first)
            yield _fault(
                inner,
                f"lies in the place of {outer}",
                "give each a place of its own: both delete what they do not know",
            )
    for name, mirror in config.mirrors.items():
        source, target = _whereabouts(config, mirror.source), _whereabouts(config, mirror.target)
        if source and target and (_lies_in(source, target) or _lies_in(target, source)):
            yield _fault(f"mirror.{name}.target", "and the source lie in each other", "mirror to a bucket of its own")
    covered = {_whereabouts(config, url) for ledger in config.ledgers.values() for url in ledger.covers}
    for name, volume in config.volumes.items():
        place = _whereabouts(config, volume.url)
        if config.ledgers and place and not any(_lies_in(place, outer) for outer in covered):
            yield Finding(f"volume.{name}", "note", "there are ledgers, and none covers it")


def _ports(config: Config) -> Iterator[Finding]:
    known = list(_listening(config))
    for first, second in combinations(known, 2):
        same_portal = first.service == second.service
        if first.port and first.port == second.port and _overlap(first.host, second.host) and not same_portal:
            said = f"port {first.port} is also that of {first.setting}"
            yield _fault(second.setting, said, "a port is one service's on a host: change one of them")


def _listening(config: Config) -> Iterator[Listening]:
    def at(service: str, setting: str, text: str) -> Iterator[Listening]:
        if text:
            host, _, port = text.rpartition(":")
            yield Listening(service, setting, host.strip("[]"), int(port))

    if any(config.volume(name).listen == config.s3block.listen for name in config.volumes):
        for text in config.s3block.listen:
            yield from at("portal", "s3block.listen", text)
    for name, volume in config.volumes.items():
        for text in volume.listen or ():
            yield from at("portal", f"volume.{name}.listen", text)
        yield from at(f"metrics of {name}", f"volume.{name}.metrics_listen", volume.metrics_listen or "")
    yield from at("s3block metrics", "s3block.metrics_listen", config.s3block.metrics_listen)
    for name, mirror in config.mirrors.items():
        yield from at(f"mirror {name}", f"mirror.{name}.listen", mirror.listen)
    for name, ledger in config.ledgers.items():
        yield from at(f"ledger {name}", f"ledger.{name}.listen", ledger.listen)
    yield from at("pve", "pve.metrics_listen", config.pve.metrics_listen)
    if "envctl" in config.model_fields_set:
        yield from at("envctl", "envctl.listen", config.envctl.listen)


def _prices(config: Config) -> Iterator[Finding]:
    figures = [name for name in PriceSettings.model_fields if name != "currency"]
    for name, endpoint in config.endpoints.items():
        given, usual = endpoint.prices, PRESETS[endpoint.preset].prices
        missing = [figure for figure in figures if getattr(given, figure) is None and getattr(usual, figure) != 0]
        if given.currency not in (None, usual.currency) and missing:
            said = f"currency is {given.currency}, and the preset's {', '.join(missing)} are in {usual.currency}"
            yield Finding(f"endpoint.{name}.prices", "warning", said, "set all figures, or leave the currency")


def _exposed(config: Config) -> Iterator[Finding]:
    """What works and should not stay so."""
    for name, endpoint in config.endpoints.items():
        parts = urlsplit(endpoint.url.replace("{{", "").replace("}}", ""))
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            said = "http:// sends what is read and written in clear"
            yield Finding(
                f"endpoint.{name}.url", "warning", said, "use https://, with ca_file or fingerprint if need be"
            )
    for listening in _listening(config):
        if listening.setting.endswith("metrics_listen") and listening.host in ("0.0.0.0", "::"):
            said = "metrics are told to whoever reaches this host; there is neither TLS nor a password"
            yield Finding(listening.setting, "warning", said, "name the address that your Prometheus reaches")
    for name, driver in config.envctl.driver.items():
        if not driver.verify_tls:
            said = "verify_tls is off: anybody on the way can read the token"
            yield Finding(
                f"envctl.driver.{name}", "warning", said, "set fingerprint or ca_file, and leave verify_tls on"
            )
    for name, volume in config.volumes.items():
        open_to_all = [
            one for one in config.volume(name).listen or () if not _is_loopback(one.rpartition(":")[0].strip("[]"))
        ]
        if open_to_all and not volume.chap_user and not volume.initiators and volume.door == "portal":
            said = f"whoever reaches {open_to_all[0]} may write to it"
            yield Finding(f"volume.{name}", "warning", said, "set chap_user and chap_secret_file, or initiators")


# --- what the host has -----------------------------------------------------------------------------------------------


def _secrets(config: Config) -> Iterator[Finding]:
    for setting, text in _texts(config):
        named = next((text.removeprefix(kind) for kind in _SECRET_FILES if text.startswith(kind)), "")
        word = setting.rpartition(".")[2]
        secret = bool(named) or word == "private_key" or word.endswith(("secret_file", "token_file"))
        if not named and (word.endswith("_file") or word in ("private_key", "certificate")):
            named = text
        if not named or named.startswith("systemd:"):
            continue
        path = Path(named).expanduser()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            yield _fault(setting, f"{path} is not there", "put it there, or change the setting")
            continue
        except OSError as error:
            yield Finding(
                setting, "warning", f"{path}: {error.strerror}", "run this as the user that the services run as"
            )
            continue
        if secret and mode & 0o077:
            yield _fault(setting, f"{path} holds a secret and has mode {mode:04o}", f"chmod 600 {path}")


def _directories(config: Config, mounts: str) -> Iterator[Finding]:
    known = list(_state_directories(config))
    for first, second in combinations(known, 2):
        if first.path == second.path:
            yield _fault(
                second.setting, f"{second.path} is also that of {first.setting}", "give each a folder of its own"
            )
        elif first.path in second.path.parents or second.path in first.path.parents:
            inner, outer = (second, first) if first.path in second.path.parents else (first, second)
            yield _fault(
                inner.setting, f"{inner.path} lies in {outer.path} of {outer.setting}", "give each a folder of its own"
            )
    for one in known:
        there = next(path for path in (one.path, *one.path.parents) if path.exists())
        if not there.is_dir():
            yield _fault(one.setting, f"{there} is no directory", "name another one")
        elif not os.access(there, os.W_OK | os.X_OK):
            said = f"{there} cannot be written to by this user"
            yield Finding(one.setting, "warning", said, "run this as the user that the services run as; else chown it")
        kind = _file_system(there, mounts)
        if kind in FORGETTING:
            yield _fault(one.setting, f"{one.path} is on {kind}: what is there is gone after a boot", "use a disk")
        elif kind in DISTANT:
            said = f"{one.path} is on {kind}: locks and syncs there are not what this needs"
            yield Finding(one.setting, "warning", said, "use a disk of this host")


def _state_directories(config: Config) -> Iterator[Directory]:
    def at(setting: str, path: str | None) -> Iterator[Directory]:
        if path:
            yield Directory(setting, Path(os.path.normpath(Path(path).absolute())))

    for name in config.volumes:
        yield from at(f"volume.{name}.state_dir", config.volume(name).state_dir)
    for name in config.mirrors:
        yield from at(f"mirror.{name}.state_dir", config.mirror(name).state_dir)
    for name in config.ledgers:
        yield from at(f"ledger.{name}.state_dir", config.ledger(name).state_dir)
    if "pve" in config.model_fields_set:
        yield from at("pve.state_dir", config.pve.state_dir)
    if "envctl" in config.model_fields_set:
        # Disks of machines may lie in the console's folder: one service has both.
        yield from at("envctl.state_dir", config.envctl.state_dir)


def _file_system(path: Path, mounts: str) -> str:
    """The type of the file system that `path` is on (proc(5), mountinfo)."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        if (point == path or point in path.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def _read_mounts() -> str:
    try:
        return MOUNTS.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""  # no Linux: nothing is known of file systems


# --- reading settings ------------------------------------------------------------------------------------------------


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    """Every text in the configuration, by the full name of its setting. Secrets are none."""

    def walk(value: object, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, BaseModel):
            for field, info in type(value).model_fields.items():
                yield from walk(getattr(value, field), f"{name}.{info.alias or field}" if name else info.alias or field)
        elif isinstance(value, Mapping):
            for key, one in value.items():
                yield from walk(one, f"{name}.{key}")
        elif isinstance(value, tuple):
            for one in value:
                yield from walk(one, name)
        elif isinstance(value, str) and value:
            yield name, value

    yield from walk(config, "")


def _urls(config: Config) -> Iterator[tuple[str, str]]:
    for setting, text in _texts(config):
        if text.startswith(("s3://", "file:///", "memory:")):
            yield setting, text


def _whereabouts(config: Config, url: str) -> str:
    """Empty where that is not known, which `_endpoints` tells."""
    try:
        return config.whereabouts(url)
    except (ValueError, ConfigError):
        return ""


def _lies_in(inner: str, outer: str) -> bool:
    return f"{inner}/".startswith(f"{outer}/")


def _overlap(first: str, second: str) -> bool:
    return first == second or bool({first, second} & {"0.0.0.0", "::"})


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fault(setting: str, said: str, cure: str = "") -> Finding:
    return Finding(setting, "fault", said, cure, ExitCode.CONFIGURATION)
