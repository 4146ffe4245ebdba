"""`pve-s3 doctor`: from the configuration to what is examined, and how it is told.

One rule: nothing is judged here.
"""

from contextlib import closing
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry

from plugin.arguments import CredentialsOption, RootOption, StorageArgument, begin_logging, named_storage, pve_root
from plugin.bucket import open_bucket
from plugin.configuration import Storage, read_storages
from plugin.doctor import Diagnosis, diagnose, look_at_node
from s3core.clock import SystemClock, system_random
from s3core.console import JsonOption, write_json, write_line
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.findings import CHECK_WIDTH, write_finding
from s3core.settings import load_config


def doctor(
    id: StorageArgument,
    read_only: Annotated[bool, typer.Option("--read-only", help="Write nothing: look at settings alone.")] = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine a storage's server, bucket and settings, and this node, and say what is wrong and what to do about it.

    Writes a few small objects (and one of 5 MiB) below .bucketworks/probe/ of the storage's prefix, and removes them again.
    Ends with the exit code of the first fault, 0 without one."""
    begin_logging()
    storage, config, clock = named_storage(id, root, credentials), load_config(config_path), SystemClock()
    others = {name: one for name, one in read_storages(pve_root(root)).items() if isinstance(one, Storage)}
    with closing(open_bucket(storage, config, registry=CollectorRegistry())) as bucket:
        diagnosis = diagnose(
            storage,
            config,
            bucket,
            look_at_node(storage, config),
            others,
            clock=clock,
            random=system_random(),
            writing=not read_only,
            on_finding=(lambda finding: None) if as_json else write_finding,
        )
    _tell(diagnosis, as_json=as_json)
    raise typer.Exit(diagnosis.exit_code)


def _tell(diagnosis: Diagnosis, *, as_json: bool) -> None:
    if as_json:
        write_json(
            {
                "storage": diagnosis.storage,
                "ok": diagnosis.exit_code is ExitCode.OK,
                "findings": [finding.as_record() for finding in diagnosis.findings],
                "figures": diagnosis.figures,
            }
        )
        return
    faults = [finding.check for finding in diagnosis.findings if finding.verdict == "fault"]
    write_line()
    write_line(f"{'no' if faults else 'yes':<9}  {'pve-s3':<{CHECK_WIDTH}}  storage {diagnosis.storage}")
    if faults:
        write_line(f"{'':<9}  {'':<{CHECK_WIDTH}}  - mend first: {', '.join(faults)}")
