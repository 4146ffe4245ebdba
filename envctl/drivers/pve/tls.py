"""Whom we talk to: the system's authorities, a file of ours, or one certificate by its fingerprint.

One rule: with a fingerprint the certificate itself is compared, in the handshake's own connection and before the token is sent.
Then neither its name nor its dates nor who signed it count. Proxmox VE's own certificates are signed by the cluster's authority
(`/etc/pve/pve-root-ca.pem`): that file as `ca_file` covers all nodes, also after a renewal.
"""

import hashlib
import hmac
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from s3core.settings import ConfigError

_FINGERPRINT: Final = re.compile(r"(?:[0-9A-F]{2}:?){31}[0-9A-F]{2}")


def fingerprints(driver: str, text: str) -> tuple[str, ...]:
    """SHA-256 fingerprints, with or without colons, several separated by commas or blanks. ConfigError: not such."""
    found = []
    for each in re.split(r"[,\s]+", text.strip()):
        if each and not _FINGERPRINT.fullmatch(each.upper()):
            raise ConfigError(
                f"[envctl.driver.{driver}] fingerprint: {each!r} is not a SHA-256 fingerprint"
                " (pvenode cert info shows it: 32 bytes in hexadecimal)"
            )
        if each:
            found.append(each.replace(":", "").lower())
    return tuple(found)


class _PinnedSocket(ssl.SSLObject):
    """TLS as asyncio does it (a `BIO` pair): the handshake is done only when the certificate is one of those expected."""

    def do_handshake(self) -> None:
        super().do_handshake()
        context = self.context
        assert isinstance(context, _PinnedContext)
        context.check(self.getpeercert(binary_form=True))


class _PinnedContext(ssl.SSLContext):
    sslobject_class = _PinnedSocket
    expected: tuple[str, ...] = ()

    def check(self, certificate: bytes | None) -> None:
        found = hashlib.sha256(certificate or b"").hexdigest()
        if not any(hmac.compare_digest(found, each) for each in self.expected):
            raise ssl.SSLCertVerificationError(
                1, f"the server's certificate has the fingerprint {found}, which is not the one configured"
            )


def context_for(driver: str, *, ca_file: str, expected: Sequence[str], verify: bool) -> ssl.SSLContext:
    """ConfigError: `ca_file` cannot be read."""
    if expected:
        pinned = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
        pinned.expected = tuple(expected)
        pinned.check_hostname = False
        pinned.verify_mode = ssl.CERT_NONE  # the fingerprint says more than a chain would
        pinned.minimum_version = ssl.TLSVersion.TLSv1_2
        return pinned
    try:
        context = ssl.create_default_context(cafile=str(Path(ca_file)) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[envctl.driver.{driver}] ca_file {ca_file}: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
