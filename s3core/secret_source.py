"""The secrets that open what is encrypted, volumes and mirrors: from a private file, from systemd, or from a person.

One rule: a secret goes from its source into `Secret` and nowhere else; how to ask a person is an argument.
"""

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from s3core.credentials import check_key_source, read_key_file, systemd_credential
from s3core.credentials import read_secret as read_line
from s3core.key_slot import Secret

PASSPHRASE_CHARACTERS_MIN = 12
"""Of a new one. Argon2id makes a guess cost a tenth of a second; it does not make eight letters strong."""


def read_secret(
    source: str, of: str, *, ask: Callable[[str], str], environ: Mapping[str, str], new: bool = False
) -> Secret | None:
    """The secret that `source` stands for (see `credentials.KEY_SOURCES`), None for an empty source. `of` says whose it is:
    "volume vm1". `ask` puts a question to a terminal; a `new` passphrase is asked for twice. ValueError for a source of
    another form, an empty or short passphrase, two that differ; CredentialsError for what cannot be read or may be read
    by others."""
    kind, _, name = check_key_source(source).partition(":")
    if not kind:
        return None
    if kind == "file":
        return Secret("key", read_key_file(Path(name).expanduser()))
    if kind == "systemd":
        return Secret("key", read_key_file(systemd_credential(name, environ)))
    if kind == "passphrase-file":
        words = read_line(Path(name).expanduser())
    else:
        words = ask(f"passphrase of {of}: ").strip()
        if not words:
            raise ValueError("no passphrase was given")
        if new and ask("once more: ").strip() != words:
            raise ValueError("the two passphrases differ")
    # One keyboard composes an accented letter, another sends its parts (RFC 8265 section 4.2.2).
    words = unicodedata.normalize("NFC", words)
    if new and len(words) < PASSPHRASE_CHARACTERS_MIN:
        raise ValueError(f"a passphrase has at least {PASSPHRASE_CHARACTERS_MIN} characters")
    return Secret("passphrase", words.encode())
