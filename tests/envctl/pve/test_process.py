"""The fake as a process of its own, ordered by its control path: as somebody tries the console against it by hand."""

import asyncio
import re
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from envctl.drivers.port import CloneSpec
from envctl.drivers.pve.driver import PveDriver
from envctl.errors import DriverBusy
from envctl.fake_pve.cluster import POOL, TEMPLATE
from envctl.identifiers import new_id, tag_of
from s3core.settings import EnvctlDriverSettings


def test_faults_are_ordered_and_the_cluster_is_looked_at_from_outside(tmp_path: Path) -> None:
    token = tmp_path / "token"
    command = [sys.executable, "-m", "envctl.fake_pve.server", "--token-file", str(token)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        driver = PveDriver("pve", EnvctlDriverSettings(url=url, token=f"file:{token}", pool=POOL))
        environment = new_id(1.0, bytes(10))
        spec = CloneSpec(
            environment_id=environment,
            generation=1,
            name="work",
            tag=tag_of(environment),
            source=str(TEMPLATE),
            options={},
            vmid=90_000,
            description=f"envctl:{environment}:1",
        )

        async def work() -> None:
            with pytest.raises(DriverBusy, match="598 torn"):
                await driver.clone(spec)
            await driver.clone(spec)
            await driver.close()

        with httpx.Client(base_url=url, trust_env=False) as control:
            wrong = control.post("/fake/faults", json={"colour": "red"})
            assert wrong.status_code == 400
            control.post("/fake/faults", json={"path": "/clone$", "status": 598, "message": "torn"}).raise_for_status()
            asyncio.run(work())
            assert [fault["times"] for fault in control.get("/fake/faults").json()] == [0]
            made = {machine["vmid"]: machine for machine in control.get("/fake/machines").json()}
            assert made[90_000]["pool"] == POOL
            assert control.get("/fake/violations").json() == []
            assert control.post("/fake/nodes/pve2", json={"online": False}).json() == {"online": False}
            assert control.get("/fake/nothing").status_code == 404
            assert control.get("/api2/json/version").status_code == 401
    finally:
        process.terminate()
        process.wait(30)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
