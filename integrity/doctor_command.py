"""`s3integrity doctor`: from the configuration to what is examined, and how it is told.

One rule: nothing is judged here.
"""

from contextlib import closing
from typing import Annotated

import typer

from integrity.cosigning import Network
from integrity.doctor import Diagnosis, Surroundings, covered_versioning, diagnose, feeds_here, ledger_judges
from integrity.place import Ledger, opened_ledger
from integrity.report_commands import LedgerArgument
from s3core.build import parse_store_url
from s3core.clock import SystemClock
from s3core.console import JsonOption, write_json, write_line
from s3core.endpoint_commands import ConfigOption
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.findings import CHECK_WIDTH, Finding, finding_of, write_finding
from s3core.s3_control import S3Control
from s3core.s3_facts import examine_endpoint
from s3core.settings import Config, ConfigError, load_config

WITNESS_WAIT_S = 5.0


def doctor(
    name: LedgerArgument,
    probing: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Write one small object, to see whether it can be deleted.")
    ] = True,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine a ledger as this host sees it (store, evidence, keys, slots, pins, witnesses), and say what is wrong and what to
    do about it. Ends with the exit code of the first fault, 0 without one."""
    config = load_config(config_path)
    with opened_ledger(name, config) as ledger:
        diagnosis = diagnose(
            ledger,
            _surroundings(config, ledger),
            probing=probing,
            on_finding=(lambda finding: None) if as_json else write_finding,
        )
    _tell(diagnosis, as_json=as_json)
    raise typer.Exit(diagnosis.exit_code)


def _surroundings(config: Config, ledger: Ledger) -> Surroundings:
    place = parse_store_url(ledger.settings.url)

    def store() -> list[Finding]:
        if place.scheme != "s3":
            return []
        judges = ledger_judges(ledger.settings.retain_s)
        return examine_endpoint(config.endpoint(place.name), place.bucket, place.path, SystemClock(), judges)

    def covers(url: str) -> Finding:
        check = f"covers {url}"
        other = parse_store_url(url)
        if other.scheme != "s3":
            return Finding(check, "note", "a directory: it has no versions, and is seen as it is now alone")
        try:
            with closing(S3Control(config.endpoint(other.name))) as control:
                if not control.bucket_exists(other.bucket):
                    cure = "check its name, or take it out of `covers`"
                    return Finding(check, "fault", f"bucket {other.bucket} does not exist", cure, ExitCode.NOT_FOUND)
                return covered_versioning(url, control.versioning(other.bucket))
        except StoreError as error:
            return finding_of(check, error)
        except ConfigError as error:
            return Finding(check, "fault", str(error), error.hint, ExitCode.CONFIGURATION)

    network = Network(WITNESS_WAIT_S)
    shares = [
        url
        for url in ledger.settings.covers
        if place.scheme == "s3"
        and (parse_store_url(url).name, parse_store_url(url).bucket) == (place.name, place.bucket)
    ]
    return Surroundings(
        store,
        covers,
        lambda url: network.get(url)[0],
        lambda: feeds_here(ledger.state_dir / "feeds", ledger.clock.time()),
        shares,
    )


def _tell(diagnosis: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        write_json(
            {
                "ledger": diagnosis.ledger,
                "ok": diagnosis.exit_code is ExitCode.OK,
                "findings": [finding.as_record() for finding in diagnosis.findings],
                "figures": diagnosis.figures,
            }
        )
        return
    faults = [finding.check for finding in diagnosis.findings if finding.verdict == "fault"]
    write_line()
    write_line(f"{'no' if faults else 'yes':<9}  {'s3integrity':<{CHECK_WIDTH}}  ledger {diagnosis.ledger}")
    if faults:
        write_line(f"{'':<9}  {'':<{CHECK_WIDTH}}  - mend first: {', '.join(faults)}")
