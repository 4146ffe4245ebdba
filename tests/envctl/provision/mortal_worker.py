"""A console's worker as a process that can be told at which moment to die.

One process without threads has everything imported and forks a worker for each line on its standard input: a JSON list of
moments. The worker does all jobs there are and ends; at the first of those moments it kills itself with SIGKILL. A line tells
where, or null.

    python -m tests.envctl.provision.mortal_worker DATABASE_URL DIRECTORY PVE_URL TOKEN
"""

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from envctl.audit import Audit
from envctl.calling import Context
from envctl.database.access import Database
from envctl.drivers.pve.driver import PveDriver
from envctl.homes.opening import open_homes
from envctl.provision import points
from envctl.provision.runner import Runner
from envctl.sealing import SecretBox
from s3core.clock import SystemClock
from s3core.settings import EnvctlDriverSettings, EnvctlSettings
from tests.envctl.provision.stage import FAST


def work(database_url: str, directory: Path, driver: PveDriver, die_at: set[str], last_words: int) -> None:
    def reached(name: str) -> None:
        if name in die_at:
            os.write(last_words, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    points.set_hook(reached)
    clock = SystemClock()
    database = Database(database_url)
    context = Context(
        settings=EnvctlSettings(state_dir=str(directory), boot_s=120.0, restore_s=120.0, shutdown_s=60.0),
        database=database,
        audit=Audit(database, None, clock, host="console"),
        homes=open_homes(f"file://{directory}/homes", secret=b"s" * 32),
        drivers={"pve": driver},
        secrets=SecretBox.open_file(directory / "key"),
        clock=clock,
    )

    async def whole() -> None:
        await Runner(context, f"worker-{os.getpid()}", pace=FAST).run_until_idle()
        await driver.close()

    asyncio.run(whole())


def main() -> int:
    database_url, directory, pve_url, token = sys.argv[1:]
    # It has no connection yet; made once, because reading the authorities' certificates takes longer than a life.
    driver = PveDriver("pve", EnvctlDriverSettings(url=pve_url, token=token, pool="envctl"))
    for line in sys.stdin:
        die_at = set(json.loads(line))
        hears, last_words = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(database_url, Path(directory), driver, die_at, last_words)
                status = 0
            except BaseException:  # noqa: BLE001 - shown, and told by the exit status
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(last_words)
        _, how = os.waitpid(child, 0)
        with open(hears) as words:
            said = words.read()
        if os.WIFEXITED(how) and os.WEXITSTATUS(how) != 0:
            return 1
        sys.stdout.write(json.dumps(said or None) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
