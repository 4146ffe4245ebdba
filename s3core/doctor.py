"""What a store is good for: findings about it, and which tools may run on it with what limits.

One rule: a tool may run only where everything it needs was seen to hold. Facts about endpoint and bucket come from
`s3_facts`, promises of the data path from `probe`; here they are put side by side and judged by one table.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry

from s3core.build import build_store, parse_store_url
from s3core.clock import Clock, SystemClock
from s3core.console import write_json, write_line
from s3core.exit_codes import ExitCode
from s3core.findings import Finding, exit_code_for
from s3core.probe import ProbeResult, probe_store
from s3core.settings import Config

Answer = Literal["yes", "limited", "no", "not known"]


@dataclass(frozen=True, slots=True)
class Tool:
    """What a tool cannot do without, and what it can at a price. Both name checks; the price is one sentence."""

    name: str
    purpose: str
    needs: tuple[str, ...]
    limits: dict[str, str] = field(default_factory=dict)


_VOLUME_LIMITS = {
    "create once": "set unfenced = true, and never serve a volume from two hosts: both would write, and destroy it",
    "replace if unchanged": "nothing here needs it",
    "delete": "space is given back late or not at all",
    "versioning": "what a volume gives up stays as old versions until a lifecycle rule removes it",
    "object lock": "what a volume gives up stays until its retention ends",
    "clock": "times in records are off; nothing depends on them",
}

#: In the order they are shown. `lifecycle` is a need of all: a rule that deletes live data spares nobody.
TOOLS: tuple[Tool, ...] = (
    Tool(
        "s3block",
        "disks",
        ("read after write", "ranges", "order of listings", "lifecycle"),
        _VOLUME_LIMITS,
    ),
    Tool(
        "cowsync",
        "mirrors",
        ("read after write", "order of listings", "lifecycle"),
        {
            "copy": "objects travel through this host instead of being copied inside the store",
            "metadata": "metadata of objects is not mirrored",
            "upload in parts": "objects up to 5 GiB",
            "create once": "one mirror process at a time",
        },
    ),
    Tool(
        "s3integrity",
        "ledgers",
        ("read after write", "create once", "lifecycle"),
        {"replace if unchanged": "the newest checkpoint is compared by this program before it is replaced"},
    ),
    Tool(
        "pve-s3",
        "Proxmox VE files",
        ("read after write", "ranges", "delete", "lifecycle"),
        {
            "upload in parts": "files up to 5 GiB",
            "versioning": "deleted files stay as old versions until a lifecycle rule removes them",
            "object lock": "files cannot be deleted before their retention ends",
        },
    ),
    Tool("s3-envctl", "users' homes", ("read after write", "ranges", "order of listings", "lifecycle"), _VOLUME_LIMITS),
)


@dataclass(frozen=True, slots=True)
class Fitness:
    """Whether a tool may run on the store; `because` are the reasons of a no and the limits of a limited."""

    tool: str
    purpose: str
    may_run: Answer
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    url: str
    findings: tuple[Finding, ...]
    fitness: tuple[Fitness, ...]
    figures: dict[str, float]

    @property
    def exit_code(self) -> ExitCode:
        """The code of the first fault, FINDING where some tool may not run, else OK."""
        code = exit_code_for(self.findings)
        if code is ExitCode.OK and any(fitness.may_run in ("no", "not known") for fitness in self.fitness):
            return ExitCode.FINDING
        return code


def diagnose(
    url: str,
    config: Config,
    *,
    clock: Clock | None = None,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> Diagnosis:
    """Examine the store at `url`, telling `on_finding` as it goes; objects written for that are removed again.
    ValueError for a URL that is none, ConfigError for an endpoint nobody knows. What the store does is never raised."""
    place = parse_store_url(url)
    clock = clock or SystemClock()
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        on_finding(finding)

    if place.scheme == "s3":
        from s3core.s3_facts import examine_endpoint

        for finding in examine_endpoint(config.endpoint(place.name), place.bucket, place.path, clock):
            found(finding)
        # A fault of another kind than a finding means that nothing further can be asked.
        if exit_code_for(findings) not in (ExitCode.OK, ExitCode.FINDING):
            return Diagnosis(url, tuple(findings), (), {})
    store = build_store(url, config=config, clock=clock, registry=CollectorRegistry())
    told = {finding.check for finding in findings}

    def tell(result: ProbeResult) -> None:
        # Endpoint and probe both look at the clock; the endpoint's look comes first and is the closer one.
        if result.name not in told:
            found(_finding(result))

    try:
        report = probe_store(store, clock=clock, on_result=tell)
    finally:
        store.close()
    inconclusive = frozenset(result.name for result in report.findings if not result.conclusive)
    asked = frozenset(finding.check for finding in findings)
    fitness = tuple(judge(tool, findings, inconclusive, asked, report.figures) for tool in TOOLS)
    return Diagnosis(url, tuple(findings), fitness, report.figures)


def judge(
    tool: Tool,
    findings: Sequence[Finding],
    inconclusive: frozenset[str],
    asked: frozenset[str],
    figures: dict[str, float],
) -> Fitness:
    """Whether `tool` may run, by its row in the table. A need that was not asked for is not met, except `lifecycle`,
    which only buckets have."""
    failed = {finding.check: finding for finding in findings if finding.verdict in ("fault", "warning")}
    missing = [need for need in tool.needs if need != "lifecycle" and need not in asked]
    refused = [need for need in tool.needs if need in failed and failed[need].verdict == "fault"]
    unclear = [need for need in refused if need in inconclusive]
    if refused and len(unclear) < len(refused):
        return Fitness(tool.name, tool.purpose, "no", tuple(f"{need}: {failed[need].said}" for need in refused))
    if unclear or missing:
        return Fitness(tool.name, tool.purpose, "not known", tuple(f"{need}: not known" for need in unclear + missing))
    limits = tuple(
        f"not known whether it holds: {check}" if check in inconclusive else limit
        for check, limit in tool.limits.items()
        if check in failed
    )
    notes: tuple[str, ...] = ()
    if "put_4k_median_ms" in figures and tool.limits is _VOLUME_LIMITS:
        notes = (f'with flush = "s3" a FLUSH takes about {figures["put_4k_median_ms"]:.3g} ms',)
    return Fitness(tool.name, tool.purpose, "limited" if limits else "yes", limits + notes)


def write_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """The verdict per tool, below the findings that were written as they came; or everything as one JSON object."""
    if as_json:
        write_json(
            {
                "url": diagnosis.url,
                "findings": [finding.as_record() for finding in diagnosis.findings],
                "tools": [asdict(fitness) for fitness in diagnosis.fitness],
                "figures": diagnosis.figures,
            }
        )
        return
    if not diagnosis.fitness:
        return
    write_line()
    for fitness in diagnosis.fitness:
        write_line(f"{fitness.may_run:<9}  {fitness.tool:<11}  {fitness.purpose}")
        for reason in fitness.because:
            write_line(f"{'':<9}  {'':<11}  - {reason}")


def _finding(result: ProbeResult) -> Finding:
    if result.ok:
        return Finding(result.name, "ok", result.detail)
    needed = any(result.name in tool.needs for tool in TOOLS)
    said = result.detail if result.conclusive else f"could not be asked: {result.detail}"
    return Finding(result.name, "fault" if needed or not result.conclusive else "warning", said, result.hint)
