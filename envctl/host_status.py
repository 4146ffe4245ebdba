"""What `bucketworks status` is told of the console on this host (`envctl.console_status`), and what that spent.

One rule: where there is no console, nothing of it is imported: a web framework and a database are much for a host without one.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from s3core.settings import Config
from s3core.spending import Account
from s3core.spending_book import FOLDER, directory_of, read_month
from s3core.status_collector import Look, readable_directory


def report(config: Config) -> Iterable[Look]:
    """One, where a console has its database here or is configured to have it elsewhere."""
    settings = config.envctl
    there = bool(settings.database)
    if not there and readable_directory(Path(settings.state_dir)):
        there = (Path(settings.state_dir) / "envctl.sqlite3").exists()
    if not there:
        return []
    from envctl.console_status import NAME, look_at

    return [Look("console", NAME, partial(look_at, settings, config.status.deadline_s))]


def accounts(config: Config, month: str) -> Iterable[Account]:
    """What the console spent, where it runs as a user of its own: that one counts in the console's state directory."""
    folder = Path(config.envctl.state_dir) / FOLDER
    if folder == directory_of(config) or not readable_directory(folder):
        return []
    return [Account(name, spent) for name, spent in read_month(folder, month).items()]
