"""`pve-s3 storages`: which storages of ours this node knows, and what is wrong with those it cannot use."""

from plugin.arguments import RootOption, pve_root
from plugin.configuration import Storage, read_storages
from s3core.console import Column, JsonOption, write_records
from s3core.settings import ConfigError


def storages(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Show the storages of storage.cfg that lie in buckets."""
    rows = [_row(id, found) for id, found in sorted(read_storages(pve_root(root)).items())]
    columns = [
        Column("storage", "storage"),
        Column("type", "type"),
        Column("place", "place"),
        Column("problem", "problem"),
    ]
    write_records(rows, columns, as_json=as_json)


def _row(id: str, found: Storage | ConfigError) -> dict[str, object]:
    if isinstance(found, ConfigError):
        return {"storage": id, "type": "", "place": "", "problem": str(found)}
    return {"storage": id, "type": found.type, "place": f"{found.bucket}/{found.prefix}", "problem": ""}
