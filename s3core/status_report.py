"""One look at this host: everything the providers tell, and the money of this month.

One rule: what counts and prices cannot tell is an item of its own that says so; a report is made in any case.
"""

import time

from s3core.console import program_version
from s3core.settings import Config, ConfigError, settings_to_endpoint
from s3core.spending import Account, accounts_of, is_month, month_of
from s3core.spending_book import directory_of, read_month
from s3core.status import HostStatus, Item, unknown, with_storage
from s3core.status_collector import Collector, installed_accounts
from s3core.status_publishing import host_name

NOT_KNOWN = (
    "estimates by list prices; not in them: what is stored but not measured here, taxes, free tiers, minimum charges and other"
    " hosts; every byte fetched counts as egress"
)


def host_status(config: Config, collector: Collector) -> HostStatus:
    """How this host is now, within `[status] deadline_s` and the reading of some small files. ConfigError where the host has
    no name that fits."""
    host = host_name(config)
    items = collector.collect(config, config.status.deadline_s)
    now = time.time()
    accounts, problems = spent_in(config, month_of(now))
    told = tuple(unknown("spending", "-", problem) for problem in problems)
    return HostStatus(host, now, program_version(), (*items, *told), month_of(now), with_storage(accounts, items))


def spent_in(config: Config, month: str) -> tuple[list[Account], list[str]]:
    """What this host spent in a month, by endpoint, and why some of it is not known."""
    if not is_month(month):
        raise ValueError(f"{month!r} is no month; write it as 2026-11")
    more, problems = installed_accounts(config, month)
    prices = {
        name: settings_to_endpoint(name, settings, path=config.path).prices
        for name, settings in config.endpoints.items()
    }
    directory = directory_of(config)
    counts = {}
    try:
        counts = read_month(directory, month) if directory is not None else {}
    except (OSError, ValueError) as error:
        problems.append(f"counts of {month} in {directory}: {error}")
    return accounts_of(counts, prices, more), problems


def own_status(config: Config, collector: Collector) -> HostStatus:
    """As `host_status`; a host without a name that fits is called `localhost`."""
    try:
        return host_status(config, collector)
    except ConfigError as error:
        named = config.model_copy(update={"status": config.status.model_copy(update={"host": "localhost"})})
        status = host_status(named, collector)
        problem: Item = unknown("status", "host", str(error))
        return HostStatus(status.host, status.at, status.program, (*status.items, problem), status.month, status.money)
