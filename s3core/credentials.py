"""Where an endpoint's keys come from: environment, a private file, an AWS profile, a systemd credential; and the secrets
that open an encrypted volume.

One rule: a secret goes from its source into `Credentials` and nowhere else. No message quotes a secret, a file that
others may read is refused, and nothing takes a secret from a command line, where `ps` would show it.

A credentials file (and a systemd credential) holds two or three lines:

    access_key = "..."
    secret_key = "..."
    session_token = "..."      # only for temporary keys
"""

import configparser
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

from s3core.endpoint import Credentials

SOURCES = "environment, file:PATH, profile:NAME, systemd:NAME or none"
KEY_SOURCES = "file:PATH, systemd:NAME, passphrase-file:PATH or passphrase"
KEY_FILE_BYTES_MIN = 32
"""A key file is used as it is, with nothing that would slow a guesser down: it must hold that much randomness."""
KEY_FILE_BYTES_MAX = 64 * 1024

_FIELDS = ("access_key", "secret_key", "session_token")
_AWS_ENVIRONMENT = dict(zip(_FIELDS, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), strict=True))
_AWS_PROFILE = dict(zip(_FIELDS, ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"), strict=True))
_ELSEWHERE = ("sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file")


class CredentialsError(Exception):
    """The keys cannot be had from where the configuration says. The message names the source and the cure."""


def check_source(source: str) -> str:
    """`source` if it is one of the forms in `SOURCES`; ValueError otherwise. Nothing is opened."""
    kind, _, name = source.partition(":")
    if source in ("environment", "none") or (kind in ("file", "profile", "systemd") and name):
        return source
    raise ValueError(f"credentials must be {SOURCES}, not {source!r}")


def find_credentials(endpoint: str, source: str, environ: Mapping[str, str]) -> Credentials:
    """The keys of `endpoint` from `source` (see `SOURCES`). Raises CredentialsError."""
    kind, _, name = check_source(source).partition(":")
    if kind == "none":
        return Credentials(source="none")
    if kind == "file":
        return _from_file(Path(name).expanduser(), f"file {name}")
    if kind == "profile":
        return _from_profile(name, environ)
    if kind == "systemd":
        return _from_systemd(name, environ)
    return _from_environment(endpoint, environ)


def environment_names(endpoint: str) -> dict[str, str]:
    """The variables that hold this endpoint's keys, before the AWS ones are looked at."""
    word = "".join(letter if letter.isalnum() else "_" for letter in endpoint.upper())
    return {field: f"BUCKETWORKS_{word}_{field.upper()}" for field in _FIELDS}


def require_private(path: Path) -> None:
    """Refuse a file that holds a secret and that group or others may touch. CredentialsError names the cure;
    OSError goes through. What systemd itself gave this process may have mode 0440: since version 254 it lets the user of a
    unit read by an access list, whose mask is shown where the group's rights would be."""
    mode = stat.S_IMODE(path.stat().st_mode)
    given = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if mode & (0o037 if given and path.parent == Path(given) else 0o077):
        raise CredentialsError(f"{path} holds a secret and has mode {mode:04o}; make it private: chmod 600 {path}")


def secret_path(named: str, environ: Mapping[str, str]) -> Path:
    """The file that a setting names which holds a secret: a path, or `systemd:NAME`. Raises CredentialsError."""
    kind, _, name = named.partition(":")
    return systemd_credential(name, environ) if kind == "systemd" and name else Path(named).expanduser()


def read_secret(path: Path) -> str:
    """The first line of a private file, for example a CHAP secret. Raises CredentialsError."""
    try:
        require_private(path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{path}: cannot read the secret: {_why(error)}") from error
    if not lines or not lines[0].strip():
        raise CredentialsError(f"{path} is empty; put the secret on its first line")
    return lines[0].strip()


def check_key_source(source: str) -> str:
    """`source` if it is one of the forms in `KEY_SOURCES`, or empty; ValueError otherwise. Nothing is opened."""
    kind, _, name = source.partition(":")
    if source in ("", "passphrase") or (kind in ("file", "systemd", "passphrase-file") and name):
        return source
    raise ValueError(f"a key must be {KEY_SOURCES}, not {source!r}")


def read_key_file(path: Path) -> bytes:
    """All bytes of a private file that is a key. Raises CredentialsError."""
    try:
        require_private(path)
        with path.open("rb") as file:
            found = file.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CredentialsError(f"{path}: cannot read the key: {_why(error)}") from error
    if not KEY_FILE_BYTES_MIN <= len(found) <= KEY_FILE_BYTES_MAX:
        size = f"more than {KEY_FILE_BYTES_MAX}" if len(found) > KEY_FILE_BYTES_MAX else str(len(found))
        raise CredentialsError(
            f"{path} has {size} bytes; a key file has {KEY_FILE_BYTES_MIN} random bytes or more, all of which count:"
            f" (umask 077; head -c {KEY_FILE_BYTES_MIN} /dev/urandom > FILE). A passphrase is read with passphrase-file:PATH"
        )
    return found


def systemd_credential(name: str, environ: Mapping[str, str]) -> Path:
    """Where systemd put the credential of that name. Raises CredentialsError."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    if not directory:
        raise CredentialsError(
            f"systemd credential {name}: CREDENTIALS_DIRECTORY is not set; start the tool from a unit with"
            f" LoadCredential={name}:/path/of/the/file"
        )
    if "/" in name or name in (".", ".."):
        raise CredentialsError(f"systemd credential {name!r}: a name has no slash")
    return Path(directory) / name


def _from_environment(endpoint: str, environ: Mapping[str, str]) -> Credentials:
    own = environment_names(endpoint)
    for names in (own, _AWS_ENVIRONMENT):
        keys = {field: environ.get(name, "") for field, name in names.items()}
        if keys["access_key"] or keys["secret_key"]:
            for field in ("access_key", "secret_key"):
                if not keys[field]:
                    raise CredentialsError(f"endpoint {endpoint}: {names[field]} is not set, though its partner is")
            return Credentials(**keys, source="environment")
    raise CredentialsError(
        f"endpoint {endpoint}: no credentials in the environment; set {own['access_key']} and {own['secret_key']}"
        f" (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or name another source: credentials = {SOURCES}"
    )


def _from_file(path: Path, source: str) -> Credentials:
    try:
        require_private(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsError(f"{source}: cannot read the credentials: {_why(error)}") from error
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        # The decoder's message may quote the line, and the line may be the secret: it is not passed on.
        found = {}
    keys = {field: found.get(field, "") for field in _FIELDS}
    if set(found) - set(_FIELDS) or not all(isinstance(key, str) for key in keys.values()):
        found = {}
    if not found or not keys["access_key"] or not keys["secret_key"]:
        raise CredentialsError(f'{source}: must hold the lines access_key = "..." and secret_key = "..."')
    return Credentials(**keys, source=source)


def _from_systemd(name: str, environ: Mapping[str, str]) -> Credentials:
    return _from_file(systemd_credential(name, environ), f"systemd credential {name}")


def _from_profile(name: str, environ: Mapping[str, str]) -> Credentials:
    home = Path(environ.get("HOME") or Path.home())
    shared = Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials").expanduser()
    config = Path(environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config").expanduser()
    section_of_config = name if name == "default" else f"profile {name}"
    seen: dict[str, str] = {}
    for path, section in ((config, section_of_config), (shared, name)):
        parser = configparser.RawConfigParser(default_section="\0")
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsError(f"profile {name}: cannot read {path}: {_why(error)}") from error
        except configparser.Error:
            # Its message quotes the line, which may hold a secret: it goes no further.
            raise CredentialsError(f"profile {name}: {path} is not an AWS configuration file") from None
        if parser.has_section(section):
            holds = dict(parser.items(section))
            if "aws_secret_access_key" in holds:
                require_private(path)
            seen |= holds
    keys = {field: seen.get(option, "") for field, option in _AWS_PROFILE.items()}
    if keys["access_key"] and keys["secret_key"]:
        return Credentials(**keys, source=f"profile {name}")
    for option in _ELSEWHERE:
        if option in seen:
            raise CredentialsError(
                f"profile {name} gets its keys through {option}, which is not followed here; write keys with"
                f" `aws configure export-credentials --profile {name}` or use another source"
            )
    raise CredentialsError(f"profile {name}: no aws_access_key_id and aws_secret_access_key in {shared} or {config}")


def _why(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    return "it is not text"
