"""What an S3 endpoint is: address, identity, limits and the known quirks of its provider, as plain values.

One rule: nothing here opens a socket or reads a file. Settings make an `Endpoint`, `s3core.s3` speaks to it,
`s3core.s3_control` administers it. Secrets live in `Credentials` only and never appear in a `repr`.
"""

import ipaddress
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import SplitResult, urlsplit

Addressing = Literal["auto", "path", "virtual"]
Honoured = Literal["yes", "no", "probe"]

REGION_AUTO = "auto"
FINGERPRINT_HEX_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key and its secret. `source` says where they came from, for messages ("environment",
    "profile backup", "file /etc/..."). Empty keys mean: send requests unsigned."""

    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    source: str = ""

    @property
    def anonymous(self) -> bool:
        return not self.access_key


@dataclass(frozen=True, slots=True)
class Prices:
    """A price table, in `currency`; zero where a provider does not charge (or where nobody told us)."""

    currency: str = "USD"
    per_1000_put: float = 0.0
    """PUT, POST, COPY and LIST requests."""
    per_1000_get: float = 0.0
    """GET, HEAD and everything else that is charged as a read."""
    per_gib_month: float = 0.0
    per_gib_egress: float = 0.0


@dataclass(frozen=True, slots=True)
class Preset:
    """What is known of a provider before anybody asked it. Beliefs only: `probe` decides what to build on."""

    name: str
    url: str
    """URL template, or empty where every site has its own."""
    region: str
    """Region used when settings name none; "auto" asks the server."""
    addressing: Addressing
    if_none_match: Honoured
    if_match: Honoured
    if_match_quoted: bool = True
    """False where `If-Match` on PUT is only understood without the ETag's quotes."""
    aws_checksums: bool = False
    """Whether x-amz-checksum-* headers are stored and verified."""
    versioned_conditions: Honoured = "probe"
    """Whether conditional writes still hold in a bucket with versioning."""
    delete_many: bool = True
    server_copy: bool = True
    copy_if_match: Honoured = "probe"
    """Whether a copy looks at `x-amz-copy-source-if-match`; where that is not sure, we look at the source ourselves."""
    copy_if_match_named: str = ""
    """Another name under which CopyObject (not UploadPartCopy) looks at that condition; it is sent as well."""
    tags_along: Honoured = "probe"
    """Whether uploads in parts and copies with other attributes take tags along; where that is not sure, we look
    afterwards and tag what is not."""
    locks_along: Honoured = "probe"
    """Whether uploads in parts and copies take a retention and a legal hold along; where that is not sure, we look
    afterwards and lock what is not."""
    prices: Prices = Prices()
    notes: tuple[str, ...] = ()


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="aws",
            url="https://s3.{{region}}.amazonaws.com",
            region=REGION_AUTO,
            addressing="virtual",
            if_none_match="yes",
            if_match="yes",
            copy_if_match="yes",
            tags_along="yes",
            locks_along="yes",
            aws_checksums=True,
            versioned_conditions="yes",
            prices=Prices(per_1000_put=0.005, per_1000_get=0.0004, per_gib_month=0.023, per_gib_egress=0.09),
            notes=(
                "conditional writes need Signature Version 4 over HTTPS; a race may answer 409 instead of 412",
                "bucket names with dots are addressed by path, because the wildcard certificate covers one label",
            ),
        ),
        Preset(
            name="ceph",
            url="",
            region="us-east-1",
            addressing="path",
            if_none_match="probe",
            if_match="probe",
            copy_if_match="no",
            copy_if_match_named="x-amz-copy-if-match",
            tags_along="no",
            locks_along="no",
            if_match_quoted=False,
            versioned_conditions="no",
            notes=(
                "on versioned buckets older releases ignore If-None-Match and fail every If-Match:"
                " keep objects that fence in an unversioned bucket",
                "the loser of a racing If-Match PUT may see 500 instead of 412",
                "older releases refuse uploads with a checksum trailer (a default boto3 client over TLS)",
                "releases before 17 ignore encryption by AES256, and aws:kms always needs a key's id",
                "storage classes are those that its operator made; others are refused",
            ),
        ),
        Preset(
            name="minio",
            url="",
            region="us-east-1",
            addressing="path",
            if_none_match="yes",
            if_match="yes",
            copy_if_match="yes",
            tags_along="yes",
            locks_along="yes",
            aws_checksums=True,
            notes=("releases before October 2025 skip conditions while a read quorum is missing",),
        ),
        Preset(
            name="garage",
            url="",
            region=REGION_AUTO,
            addressing="path",
            if_none_match="no",
            if_match="no",
            copy_if_match="yes",
            aws_checksums=True,
            versioned_conditions="no",
            notes=(
                "conditional writes are ignored: nothing that fences may live here",
                "the region is the name in Garage's s3_api section, `garage` unless changed",
            ),
        ),
        Preset(
            name="r2",
            url="https://ACCOUNT.r2.cloudflarestorage.com",
            region=REGION_AUTO,
            addressing="path",
            if_none_match="yes",
            if_match="yes",
            copy_if_match="yes",
            prices=Prices(per_1000_put=0.0045, per_1000_get=0.00036, per_gib_month=0.015),
            notes=("replace ACCOUNT by the account's id; the region is `auto`",),
        ),
        Preset(
            name="wasabi",
            url="https://s3.{{region}}.wasabisys.com",
            region="us-east-1",
            addressing="path",
            if_none_match="probe",
            if_match="probe",
            prices=Prices(per_gib_month=0.0068),
            notes=("objects are charged for at least 90 days, deleted or not: write few and large ones",),
        ),
        Preset(
            name="b2",
            url="https://s3.{{region}}.backblazeb2.com",
            region="us-west-004",
            addressing="path",
            if_none_match="no",
            if_match="no",
            versioned_conditions="no",
            prices=Prices(per_1000_get=0.0004, per_gib_month=0.006, per_gib_egress=0.01),
            notes=(
                "conditional writes answer 501: nothing that fences may live here",
                "the region is part of the endpoint shown beside the bucket, for instance eu-central-003",
            ),
        ),
        Preset(
            name="hetzner",
            url="https://{{region}}.your-objectstorage.com",
            region="fsn1",
            addressing="path",
            if_none_match="probe",
            if_match="probe",
            if_match_quoted=False,
            versioned_conditions="probe",
            prices=Prices(currency="EUR", per_gib_month=0.0055),
            notes=("the region is the location: fsn1, nbg1 or hel1",),
        ),
        Preset(
            name="generic",
            url="",
            region=REGION_AUTO,
            addressing="auto",
            if_none_match="probe",
            if_match="probe",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests for one bucket go. `host` is what the Host header names (with the port unless it is
    the scheme's own), `path` what stands before the key, percent-encoded, without a slash at its end."""

    tls: bool
    hostname: str
    port: int
    path: str
    virtual: bool = False
    """Whether the bucket's name is part of `hostname`."""

    @property
    def host(self) -> str:
        name = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One `[endpoint.NAME]` of the configuration. ValueError names the field that cannot be right."""

    name: str
    url: str
    """`https://s3.example.com`, with `{{bucket}}` and `{{region}}` expanded; without a scheme https is meant."""
    region: str = REGION_AUTO
    addressing: Addressing = "auto"
    """path: bucket in the path. virtual: bucket in the host name. auto: as the URL or the preset has it."""
    credentials: Credentials = Credentials()
    preset: str = "generic"
    ca_file: str = ""
    """PEM file of authorities to trust in place of the system's."""
    fingerprint: str = ""
    """SHA-256 of the server's certificate in hex, colons allowed; trusted whoever signed it."""
    proxy: str = ""
    """http://host:port of a proxy, or empty."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    """Longest wait for the next bytes of an answer, not for the whole of it."""
    retries: int = 8
    """Further attempts after the first, for calls that may be repeated."""
    deadline_s: float = 60.0
    """Time after which a call with its retries is given up."""
    requests_per_s: float = 0.0
    """0 is without limit; so below."""
    bytes_per_s: float = 0.0
    concurrency: int = 32
    """Requests in flight at once, and connections kept open."""
    sign_payload: bool | None = None
    """Sign the SHA-256 of bodies: None does so over http and not over TLS, which protects them already."""
    if_match_quoted: bool = True
    """Send the ETag in `If-Match` of a PUT in quotes, as RFC 9110 has it; Ceph wants it bare."""
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")
        if self.addressing not in ("path", "virtual", "auto"):
            raise ValueError(f"addressing must be path, virtual or auto, not {self.addressing!r}")
        if not self.region:
            raise ValueError("region must not be empty; `auto` asks the server")
        if self.fingerprint:
            normalise_fingerprint(self.fingerprint)
            if not self.tls:
                raise ValueError("fingerprint is set, but the URL is not https: there is no certificate to compare")
        for option in ("connect_timeout_s", "read_timeout_s", "deadline_s"):
            if getattr(self, option) <= 0:
                raise ValueError(f"{option} must be more than 0 seconds")
        for option in ("retries", "requests_per_s", "bytes_per_s"):
            if getattr(self, option) < 0:
                raise ValueError(f"{option} must not be negative")
        if self.concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        self._split("bucket", "region")

    @property
    def tls(self) -> bool:
        return self._split("bucket", "region").scheme == "https"

    def address(self, bucket: str, region: str) -> Address:
        """Where `bucket` is served in `region` (a region's name, not "auto"); an empty `bucket` gives the
        service itself (ListBuckets)."""
        virtual = bool(bucket) and self.virtual_hosted(bucket)
        parts = self._split(bucket if virtual else "", region)
        hostname = parts.hostname or ""
        path = parts.path.rstrip("/")
        if virtual:
            if "{{bucket}}" not in self._host_template():
                hostname = f"{bucket}.{hostname}"
        elif bucket and "{{bucket}}" not in self._path_template():
            path = f"{path}/{bucket}"
        elif bucket:
            path = self._path_template().replace("{{bucket}}", bucket).replace("{{region}}", region).rstrip("/")
        tls = parts.scheme == "https"
        return Address(tls, hostname, parts.port or (443 if tls else 80), path, virtual)

    def virtual_hosted(self, bucket: str) -> bool:
        """Whether the bucket's name goes into the host name."""
        host = self._host_template()
        if self.addressing != "auto":
            return self.addressing == "virtual"
        if "{{bucket}}" in host:
            return not ("." in bucket and self.tls)
        if "{{bucket}}" in self._path_template() or _is_address_or_local(self._split("", "region").hostname or ""):
            return False
        return PRESETS[self.preset].addressing == "virtual" and "." not in bucket

    def _full_url(self) -> str:
        return self.url if "://" in self.url else f"https://{self.url}"

    def _host_template(self) -> str:
        return self._full_url().partition("://")[2].partition("/")[0]

    def _path_template(self) -> str:
        rest = self._full_url().partition("://")[2]
        return rest[rest.find("/") :] if "/" in rest else ""

    def _split(self, bucket: str, region: str) -> SplitResult:
        url = self._full_url()
        # Without a bucket in the host its label goes, together with the dot after it.
        url = url.replace("{{bucket}}", bucket) if bucket else url.replace("{{bucket}}.", "").replace("{{bucket}}", "")
        url = url.replace("{{region}}", region)
        if "{{" in url or "}}" in url:
            raise ValueError(f"url: only {{{{bucket}}}} and {{{{region}}}} are known placeholders: {self.url!r}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"url: {self.url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"url: must begin with https:// or http://: {self.url!r}")
        if not parts.hostname or port == 0:
            raise ValueError(f"url: names no host or a bad port: {self.url!r}")
        if parts.username or parts.password:
            raise ValueError("url: must not carry credentials; use the credentials setting")
        if parts.query or parts.fragment:
            raise ValueError(f"url: must not have a query or a fragment: {self.url!r}")
        return parts


def from_preset(
    preset: str,
    name: str,
    *,
    url: str = "",
    region: str = "",
    addressing: Addressing | None = None,
    credentials: Credentials | None = None,
) -> Endpoint:
    """An endpoint as the preset has it, with what settings say in its place; further fields go on with
    `dataclasses.replace`. ValueError where the preset knows no URL and none is given."""
    known = PRESETS.get(preset)
    if known is None:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    if not (url or known.url):
        raise ValueError(f"url: preset {preset} has no address of its own; say where the server is")
    if not url and "ACCOUNT" in known.url:
        raise ValueError(f"url: must name your account: {known.url}")
    endpoint = Endpoint(
        name=name,
        url=url or known.url,
        region=region or known.region,
        # A template that says where the bucket goes outranks the provider's habit.
        addressing=addressing or ("auto" if "{{bucket}}" in url else known.addressing),
        preset=preset,
        if_match_quoted=known.if_match_quoted,
        prices=known.prices,
    )
    return replace(endpoint, credentials=credentials) if credentials else endpoint


def normalise_fingerprint(text: str) -> str:
    """Sixty-four lower-case hex digits out of "AB:CD:..." (or "sha256:abcd..."); ValueError otherwise."""
    digits = text.strip().lower().removeprefix("sha256:").removeprefix("sha256 ").replace(":", "").replace(" ", "")
    if len(digits) != FINGERPRINT_HEX_DIGITS or any(digit not in "0123456789abcdef" for digit in digits):
        raise ValueError(
            f"fingerprint must be a certificate's SHA-256, 64 hex digits with or without colons, not {text!r}"
        )
    return digits


def shown_fingerprint(digits: str) -> str:
    """The way tools print it and settings take it: upper-case pairs with colons."""
    upper = digits.upper()
    return ":".join(upper[at : at + 2] for at in range(0, len(upper), 2))


def _is_address_or_local(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return True
