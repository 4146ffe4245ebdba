"""Whom the driver talks to: an authority's file, a certificate's fingerprint, or anybody, and then `doctor` says so."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from envctl.drivers.pve.driver import PveDriver
from envctl.errors import DriverBusy
from envctl.fake_pve.cluster import POOL, small_cluster
from envctl.fake_pve.server import Served, start, write_token
from s3core.settings import EnvctlDriverSettings
from tests.servers.certificates import ServerCertificate, make_server_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificate:
    return make_server_certificate(tmp_path_factory.mktemp("pve-tls"))


@pytest.fixture
def served(certificate: ServerCertificate) -> Iterator[Served]:
    running = start(
        small_cluster(),
        certificate=certificate.certificate_file,
        private_key=certificate.key_file,
        clock_ahead_s=600,
    )
    try:
        yield running
    finally:
        running.close()


def reached(settings: EnvctlDriverSettings) -> list[str]:
    driver = PveDriver("pve", settings)

    async def work() -> list[str]:
        try:
            await driver.inventory()
            return [f"{each.severity}: {each.message}" for each in await driver.check_access()]
        finally:
            await driver.close()

    return asyncio.run(work())


def test_only_who_is_expected_gets_the_token(served: Served, certificate: ServerCertificate, tmp_path: Path) -> None:
    settings = EnvctlDriverSettings(url=served.url, token=write_token(tmp_path / "token"), pool=POOL)

    def having(**changes: object) -> EnvctlDriverSettings:
        return settings.model_copy(update=changes)

    with pytest.raises(DriverBusy, match="certificate verify failed"):
        reached(settings)
    with pytest.raises(DriverBusy, match="is not the one configured"):
        reached(having(fingerprint="AB:" * 31 + "AB"))
    assert served.fake.asked == [], "nobody saw the token"
    assert reached(having(ca_file=str(certificate.authority_file)))
    pinned = reached(having(fingerprint=f"{'00' * 32}, {certificate.fingerprint}"))
    assert not [line for line in pinned if "verify_tls" in line]
    assert any(line.startswith("warning: the cluster's clock is +") for line in pinned)
    careless = reached(having(verify_tls=False))
    assert any(line.startswith("error: [envctl.driver.pve] verify_tls is off") for line in careless)
