"""Is a template fit, and is the token right? What `template check` and `admin doctor` ask of Proxmox VE.

One rule: what cannot be asked is a finding, not a failure of the whole.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from envctl.drivers.port import DriverFinding
from envctl.drivers.pve import marks, rights, template, words
from envctl.drivers.pve.client import READ_S, PveClient
from envctl.drivers.pve.cluster import Cluster, is_on, release_of, vmid_of
from envctl.errors import DriverBusy, DriverFailed
from s3core.settings import EnvctlDriverSettings

CLOCK_S: Final = 60.0
"""More between our clock and the cluster's is a finding: console tickets last 40 s."""
TERMINAL_RELEASE: Final = (9, 1)
"""Since pve-access-control 9.0.4 (November 2025) a terminal's ticket may belong to a token."""


class Checks:
    def __init__(self, name: str, settings: EnvctlDriverSettings, client: PveClient, cluster: Cluster) -> None:
        self._name = name
        self._settings = settings
        self._client = client
        self._cluster = cluster

    async def template(self, source: str, options: Mapping[str, str]) -> Sequence[DriverFinding]:
        """Of the machine itself, of its storages and of the rights that a clone of it takes."""
        vmid = vmid_of(source)
        here = next((each for each in await self._cluster.machines() if each.vmid == vmid), None)
        if here is None:
            return [
                DriverFinding(
                    "error",
                    f"there is no machine {vmid}, or the token may not see it",
                    f"give the token's role VM.Audit and VM.Clone at /vms/{vmid}",
                )
            ]
        config = await self._cluster.config(here.machine)
        full = is_on(options.get("full"))
        findings = template.judge(vmid, config, shared=await self._cluster.shared(), full=full)
        if self._settings.vmid_first <= vmid <= self._settings.vmid_last:
            findings.append(
                DriverFinding(
                    "warning",
                    f"{vmid} lies in the range for machines",
                    "keep templates outside vmid_first to vmid_last",
                )
            )
        listing = await self._client.get("/access/permissions")
        storage = options.get("storage") or self._settings.storage
        storages = (
            {storage} if full and storage else {marks.storage_of(value) for value in marks.disks(config).values()}
        )
        wanted = rights.needed(
            options.get("pool") or self._settings.pool,
            [vmid],
            sorted(storages - {""}),
            rights.network_paths(config, listing),
        )
        held = await self._permissions(listing, wanted)
        missing = rights.compare(held, wanted, pool=self._settings.pool, vmids=(1, 0), release=await self._release())
        findings += [each for each in missing if " is missing at " in each.message]
        if options.get("storage") and not full:
            findings.append(
                DriverFinding(
                    "warning", "`storage` has no effect on linked clones", "set full = 1, or leave storage away"
                )
            )
        return findings

    async def access(self) -> Sequence[DriverFinding]:
        findings: list[DriverFinding] = []
        settings = self._settings
        where = f"[envctl.driver.{self._name}]"
        if not settings.verify_tls and not settings.fingerprint:
            findings.append(
                DriverFinding(
                    "error",
                    f"{where} verify_tls is off: anybody on the way can read the token and give orders with it",
                    "set fingerprint (pvenode cert info), or ca_file to a copy of /etc/pve/pve-root-ca.pem",
                )
            )
        if not settings.pool:
            findings.append(
                DriverFinding(
                    "warning",
                    f"{where} pool is not set: the token needs its rights at /vms, over all machines",
                    "pveum pool add",
                )
            )
        if settings.vmid_last - settings.vmid_first < 10:
            findings.append(
                DriverFinding("warning", f"{where} the range of VMIDs is short", "widen vmid_first to vmid_last")
            )
        try:
            answer = await self._client.call("GET", "/version", {}, timeout_s=READ_S)
            release = release_of(answer.data)
            findings.append(
                DriverFinding("ok", f"{self._name}: Proxmox VE {answer.data.get('version')} answers at {answer.base}")
            )
            findings += self._about_release(release, answer.clock_ahead_s)
            findings += await self._about_nodes()
            findings += await self._about_pool()
            findings += await self._about_rights(release)
        except DriverFailed as error:
            findings.append(DriverFinding("error", str(error.args[0]) if error.args else str(error), error.hint))
        return findings

    def _about_release(self, release: tuple[int, ...], clock_ahead_s: float | None) -> list[DriverFinding]:
        findings = []
        if release < (8, 4):
            findings.append(DriverFinding("error", "this Proxmox VE is older than 8.4", "upgrade it"))
        elif release < TERMINAL_RELEASE:
            findings.append(
                DriverFinding(
                    "warning",
                    "the terminal in the browser does not work: before Proxmox VE 9.1 a token cannot open one",
                    "the screen (VNC) works; upgrade for the terminal",
                )
            )
        if clock_ahead_s is not None and abs(clock_ahead_s) > CLOCK_S:
            findings.append(
                DriverFinding(
                    "warning",
                    f"the cluster's clock is {clock_ahead_s:+.0f} s from this host's",
                    "run chrony or systemd-timesyncd on both",
                )
            )
        return findings

    async def _about_nodes(self) -> list[DriverFinding]:
        nodes = await self._cluster.nodes()
        findings = [
            DriverFinding(
                "warning", f"node {node} is {status}", "while it is away, the inventory of its machines is not known"
            )
            for node, status in sorted(nodes.items())
            if status != "online"
        ]
        if len(nodes) > 1 and len(self._client.bases) == 1:
            findings.append(
                DriverFinding(
                    "warning",
                    f"the cluster has {len(nodes)} nodes and [envctl.driver.{self._name}] url names one",
                    "name more of them, with commas between: any of them can answer",
                )
            )
        return findings

    async def _about_pool(self) -> list[DriverFinding]:
        pool = self._settings.pool
        if not pool:
            return []
        try:
            await self._client.get("/pools/{poolid}", {"poolid": pool})
        except DriverFailed as error:
            if isinstance(error, DriverBusy):
                raise
            if words.reason(error) == "denied":
                return []  # the missing right is told with the others
            return [DriverFinding("error", str(error.args[0]), f"pveum pool add {pool}")]
        return []

    async def _about_rights(self, release: tuple[int, ...]) -> list[DriverFinding]:
        listing = await self._client.get("/access/permissions")
        listed = await self._cluster.machines()
        templates = [each.vmid for each in listed if each.template]
        storages: set[str] = {self._settings.storage} - {""}
        networks: set[str] = set()
        for each in listed:
            if each.template and (await self._cluster.nodes()).get(each.node) == "online":
                config = await self._cluster.config(each.machine)
                storages |= {marks.storage_of(value) for value in marks.disks(config).values()} - {""}
                networks |= set(rights.network_paths(config, listing))
        wanted = rights.needed(self._settings.pool, templates, sorted(storages), sorted(networks))
        held = await self._permissions(listing, wanted)
        vmids = (self._settings.vmid_first, self._settings.vmid_last)
        findings = rights.compare(held, wanted, pool=self._settings.pool, vmids=vmids, release=release)
        if not templates:
            findings.append(
                DriverFinding(
                    "warning", "the token sees no template", "give its role VM.Audit and VM.Clone at /vms/VMID of one"
                )
            )
        if not findings:
            findings.append(DriverFinding("ok", f"{self._name}: the token has the rights it needs, and no other"))
        return findings

    async def _permissions(
        self, listing: Mapping[str, dict[str, object]], wanted: Sequence[rights.Needed]
    ) -> dict[str, dict[str, object]]:
        """What the token has, also at each path that matters (the listing leaves out paths without an ACL)."""
        held = dict(listing)
        for each in wanted:
            if each.path not in held:
                held.update(await self._client.get("/access/permissions", {"path": each.path}))
        return held

    async def _release(self) -> tuple[int, ...]:
        return release_of(await self._client.get("/version"))
