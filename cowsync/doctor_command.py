"""`cowsync doctor`: from the configuration to what is examined, and how it is told.

One rule: nothing is judged here.
"""

from contextlib import closing

import typer
from prometheus_client import CollectorRegistry

from cowsync.arguments import MirrorArgument
from cowsync.doctor import MIRROR_JUDGES, SOURCE_JUDGES, STATE_JUDGES, Diagnosis, Surroundings, diagnose
from cowsync.mirror import endpoint_url, opened
from s3core.build import build_store, parse_store_url
from s3core.clock import SystemClock, system_random
from s3core.console import JsonOption, write_json, write_line
from s3core.endpoint import PRESETS
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.findings import CHECK_WIDTH, Finding, write_finding
from s3core.s3_facts import Judges, examine_endpoint
from s3core.settings import Config, MirrorSettings, load_config


def doctor(name: MirrorArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Examine source, mirror and state of a mirror, and say what is wrong and what to do about it.

    Reads the source; writes a few small objects below .cowsync/probe/ on the mirror and below probe/ in the state, and
    removes them again. Ends with the exit code of the first fault, 0 without one."""
    config = load_config(config_path)
    with (
        opened(config, name) as mirror,
        closing(build_store(mirror.settings.state, config=config, registry=CollectorRegistry())) as store,
    ):
        diagnosis = diagnose(
            mirror,
            store,
            _surroundings(config, mirror.settings),
            clock=SystemClock(),
            random=system_random(),
            on_finding=(lambda finding: None) if as_json else write_finding,
        )
    _tell(diagnosis, as_json=as_json)
    raise typer.Exit(diagnosis.exit_code)


def _surroundings(config: Config, settings: MirrorSettings) -> Surroundings:
    def examine(url: str, judges: Judges) -> list[Finding]:
        place = parse_store_url(url)
        if place.scheme != "s3":
            return []
        return examine_endpoint(config.endpoint(place.name), place.bucket, place.path, SystemClock(), judges)

    target = parse_store_url(settings.target)
    preset = PRESETS[config.endpoint(target.name).preset] if target.scheme == "s3" else None
    return Surroundings(
        lambda: examine(settings.source, SOURCE_JUDGES),
        lambda: examine(settings.target, MIRROR_JUDGES),
        lambda: examine(settings.state, STATE_JUDGES),
        preset.copy_if_match if preset else "yes",
        (endpoint_url(config, settings.source), endpoint_url(config, settings.target)),
    )


def _tell(diagnosis: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        write_json(
            {
                "mirror": diagnosis.mirror,
                "ok": diagnosis.exit_code is ExitCode.OK,
                "findings": [finding.as_record() for finding in diagnosis.findings],
                "figures": diagnosis.figures,
            }
        )
        return
    faults = [finding.check for finding in diagnosis.findings if finding.verdict == "fault"]
    write_line()
    write_line(f"{'no' if faults else 'yes':<9}  {'cowsync':<{CHECK_WIDTH}}  mirror {diagnosis.mirror}")
    if faults:
        write_line(f"{'':<9}  {'':<{CHECK_WIDTH}}  - mend first: {', '.join(faults)}")
