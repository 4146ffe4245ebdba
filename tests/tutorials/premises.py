"""What stands in the documents, and what stands for it where they are run: declared here and nowhere else.

One rule: a page is run word for word but for what is in `Premises.table`; the table is printed with every failure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from s3core.endpoint import Credentials
from s3core.s3_control import S3Control
from tests.servers.processes import free_port
from tests.servers.radosgw import Radosgw
from tests.tutorials.page import Page

URL: Final = "https://rgw.example.com"
ACCESS_KEY: Final = "AKEXAMPLE"
SECRET_KEY: Final = "SECRETEXAMPLE"
ENDPOINTS: Final = ("CEPH", "OFFSITE")
"""Names that pages give the endpoint at `URL`. `endpoint create` asks for the secret at a terminal; here it finds it in the
variable that it names for this."""
_ADDRESS: Final = re.compile(r"\b(127\.0\.0\.1:\d+)\b")


@dataclass(frozen=True, slots=True)
class Premises:
    table: Mapping[str, str]
    """By what the document says, what it is here."""
    environment: Mapping[str, str]

    def here(self, text: str) -> str:
        for said, real in self.table.items():
            text = text.replace(said, real)
        return text

    def said(self, output: str) -> str:
        """An output, in the document's words."""
        for said, real in self.table.items():
            output = output.replace(real, said)
        return output


def local(text: str) -> Premises:
    """A page without a bucket: loopback addresses get free ports."""
    addresses = sorted(set(_ADDRESS.findall(text)))
    return Premises({address: f"127.0.0.1:{free_port()}" for address in addresses}, {})


def on_radosgw(page: Page, text: str, server: Radosgw) -> Premises:
    """The page's buckets exist on return. Each page is a tenant, so that the bucket of one is not that of another."""
    tenant = f"page{uuid4().hex[:12]}"
    access_key, secret_key = f"AK{tenant}", f"SK{tenant}{uuid4().hex}"
    server.create_user(f"{tenant}$someone", access_key, secret_key)
    control = S3Control(server.endpoint(credentials=Credentials(access_key, secret_key, source="the test")))
    try:
        for bucket in page.buckets:
            control.create_bucket(bucket.name)
            if bucket.versioned:
                control.set_versioning(bucket.name, True)
    finally:
        control.close()
    plain = local(text)
    table = {
        URL: f"https://127.0.0.1:{server.tls_port}",
        SECRET_KEY: secret_key,
        ACCESS_KEY: access_key,
        **plain.table,
    }
    authority = str(server.certificate.authority_file)
    environment = {f"BUCKETWORKS_{name}_SECRET_KEY": secret_key for name in ENDPOINTS}
    # As if the server's authority were one of this system's: OpenSSL and Go read the one, botocore the other.
    return Premises(table, environment | {"SSL_CERT_FILE": authority, "REQUESTS_CA_BUNDLE": authority})
