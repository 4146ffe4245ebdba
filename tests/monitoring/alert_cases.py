"""For every alert a world in which it fires, and worlds close to it in which it does not.

One rule: a world is the healthy one with a few figures changed, so that a case says by itself what its alert is about. A
figure is written as promtool has it: `5xN` is 5 at every minute, `0+60xN` grows by 60 in each.
"""

from dataclasses import dataclass, field

HOST = {"job": "s3block", "instance": "gw1:9260"}
VOLUME = 'instance="gw1:9260", job="s3block", volume="vm1"'
MIRROR = 'instance="gw1:9261", job="cowsync", mirror="photos"'
LEDGER = 'instance="gw1:9262", job="s3integrity", ledger="archive"'
STORAGE = 'instance="pve1:9263", job="pve-s3", storage="s3"'
CONSOLE = 'instance="console", job="s3-envctl"'
HOME = 'environment="e1", owner="alice"'

HEALTHY: dict[str, str] = {
    **{
        f'up{{instance="{instance}", job="{job}"}}': "1xN"
        for job, instance in (
            ("s3block", "gw1:9260"),
            ("cowsync", "gw1:9261"),
            ("s3integrity", "gw1:9262"),
            ("pve-s3", "pve1:9263"),
            ("s3-envctl", "console"),
        )
    },
    'bucketworks_build_info{instance="gw1:9260", job="s3block", tool="s3block", version="1.0"}': "1xN",
    'bucketworks_build_info{instance="gw1:9261", job="cowsync", tool="cowsync", version="1.0"}': "1xN",
    f"bucketworks_volume_ready{{{VOLUME}}}": "1xN",
    f"bucketworks_volume_lease_seconds{{{VOLUME}}}": "600xN",
    f"bucketworks_volume_lease_left_seconds{{{VOLUME}}}": "590xN",
    f"bucketworks_volume_store_reachable{{{VOLUME}}}": "1xN",
    f"bucketworks_volume_store_errors_total{{{VOLUME}}}": "0xN",
    f'bucketworks_volume_store_requests_total{{{VOLUME}, operation="put"}}': "0+60xN",
    f'bucketworks_volume_store_requests_total{{{VOLUME}, operation="get"}}': "0+40xN",
    f"bucketworks_volume_rpo_seconds{{{VOLUME}}}": "5xN",
    f"bucketworks_volume_journal_fill_ratio{{{VOLUME}}}": "0.1xN",
    f"bucketworks_volume_writes_refused_total{{{VOLUME}}}": "0xN",
    f"bucketworks_volume_state_free_bytes{{{VOLUME}}}": "50000000000xN",
    f"bucketworks_volume_epoch{{{VOLUME}}}": "3xN",
    f'bucketworks_volume_corruptions_total{{{VOLUME}, place="journal"}}': "0xN",
    f'bucketworks_volume_corruptions_total{{{VOLUME}, place="object"}}': "2xN",
    f"bucketworks_volume_allocated_bytes{{{VOLUME}}}": "80xN",
    f"bucketworks_volume_quota_bytes{{{VOLUME}}}": "100xN",
    f'bucketworks_volume_operation_seconds_bucket{{{VOLUME}, operation="write", le="0.004"}}': "0+100xN",
    f'bucketworks_volume_operation_seconds_bucket{{{VOLUME}, operation="write", le="4.0"}}': "0+100xN",
    f'bucketworks_volume_operation_seconds_bucket{{{VOLUME}, operation="write", le="+Inf"}}': "0+100xN",
    f"bucketworks_volume_lio_task_management_total{{{VOLUME}}}": "4xN",
    f'bucketworks_volume_ledger_events_total{{{VOLUME}, outcome="recorded"}}': "0+1xN",
    f'bucketworks_volume_ledger_events_total{{{VOLUME}, outcome="lost"}}': "1xN",
    f"bucketworks_mirror_lag_seconds{{{MIRROR}}}": "900xN",
    f"bucketworks_mirror_every_seconds{{{MIRROR}}}": "3600xN",
    f"bucketworks_mirror_held{{{MIRROR}}}": "0xN",
    f"bucketworks_mirror_last_run_failed{{{MIRROR}}}": "0xN",
    f"bucketworks_mirror_lock_held{{{MIRROR}}}": "0xN",
    f"bucketworks_mirror_drifted_lines{{{MIRROR}}}": "0xN",
    f"bucketworks_mirror_events_lag_seconds{{{MIRROR}}}": "2xN",
    f"bucketworks_mirror_events_malformed_lines{{{MIRROR}}}": "7xN",
    f"bucketworks_mirror_events_lost{{{MIRROR}}}": "1xN",
    f"bucketworks_ledger_healthy{{{LEDGER}}}": "1xN",
    f"bucketworks_ledger_altered_writers{{{LEDGER}}}": "0xN",
    f"bucketworks_ledger_unread_writers{{{LEDGER}}}": "0xN",
    f"bucketworks_ledger_cosignatures{{{LEDGER}}}": "2xN",
    f"bucketworks_ledger_sealed_timestamp_seconds{{{LEDGER}}}": "0+60xN",
    f"bucketworks_ledger_slots{{{LEDGER}}}": "8xN",
    f"bucketworks_ledger_slots_in_use{{{LEDGER}}}": "3xN",
    f"bucketworks_ledger_slots_left{{{LEDGER}}}": "3xN",
    f"bucketworks_ledger_local_bytes{{{LEDGER}}}": "4000xN",
    f"bucketworks_ledger_swept_slots{{{LEDGER}}}": "1xN",
    f"bucketworks_pve_active{{{STORAGE}}}": "1xN",
    f"bucketworks_pve_unusable{{{STORAGE}}}": "0xN",
    f"bucketworks_pve_mounted{{{STORAGE}}}": "1xN",
    f"bucketworks_pve_listed_timestamp_seconds{{{STORAGE}}}": "0+60xN",
    f"bucketworks_pve_newest_backup_timestamp_seconds{{{STORAGE}}}": "0+60xN",
    f"bucketworks_pve_stored_bytes{{{STORAGE}}}": "50xN",
    f"bucketworks_pve_quota_bytes{{{STORAGE}}}": "100xN",
    f'bucketworks_pve_month_budget_ratio{{{STORAGE}, limit="requests"}}': "0.5xN",
    f"bucketworks_envctl_store_up{{{CONSOLE}}}": "1xN",
    f'bucketworks_envctl_driver_up{{{CONSOLE}, driver="pve"}}': "1xN",
    f"bucketworks_envctl_backup_interval_seconds{{{CONSOLE}}}": "300xN",
    f"bucketworks_envctl_backup_age_seconds{{{CONSOLE}, {HOME}}}": "200xN",
    f"bucketworks_envctl_backup_failing{{{CONSOLE}}}": "0xN",
    f"bucketworks_envctl_guests_silent{{{CONSOLE}}}": "0xN",
    f'bucketworks_envctl_guest_requests_total{{{CONSOLE}, status="200"}}': "0+9xN",
    f'bucketworks_envctl_guest_requests_total{{{CONSOLE}, status="412"}}': "3xN",
    f"bucketworks_envctl_mass_changes{{{CONSOLE}}}": "0xN",
    f"bucketworks_envctl_jobs_failed_recently{{{CONSOLE}}}": "0xN",
    f'bucketworks_envctl_environments{{{CONSOLE}, state="ready"}}': "4xN",
    f'bucketworks_envctl_environments{{{CONSOLE}, state="failed"}}': "0xN",
    f"bucketworks_envctl_job_oldest_seconds{{{CONSOLE}}}": "30xN",
    f'bucketworks_envctl_orphans{{{CONSOLE}, driver="pve"}}': "0xN",
    f"bucketworks_envctl_findings{{{CONSOLE}}}": "0xN",
    f"bucketworks_envctl_audit_lost_total{{{CONSOLE}}}": "2xN",
    f"bucketworks_envctl_certificate_expiry_timestamp_seconds{{{CONSOLE}}}": "9000000xN",
}
"""Counters that stand still above 0 tell of something long ago."""


@dataclass(frozen=True, slots=True)
class Case:
    """`fires`: figures of HEALTHY that are other than there; at `minutes` the alert is firing with `labels`, which are all it
    has beside its name and severity. `silent`: pairs of figures and minutes with which it is not."""

    alert: str
    fires: dict[str, str]
    minutes: int
    labels: str
    silent: tuple[tuple[dict[str, str], int], ...] = field(default=())


def _simple(
    alert: str, thing: str, metric: str, bad: str, minutes: int, good: str, *, held: bool = True, more: str = ""
) -> Case:
    """One figure: `bad` fires at `minutes`; `good` never does, and with `held` a bad one is patiently borne a minute before."""
    series = f"{metric}{{{thing}{', ' if more else ''}{more}}}"
    early = (({series: f"{bad}"}, max(minutes - 3, 0)),) if held else ()
    return Case(
        alert, {series: bad}, minutes, f"{thing}{', ' if more else ''}{more}", (({series: good}, minutes + 60), *early)
    )


def _down(alert: str, job: str, instance: str, minutes: int) -> Case:
    series = f'up{{instance="{instance}", job="{job}"}}'
    # One scrape that fails is no outage.
    return Case(
        alert,
        {series: "0xN"},
        minutes,
        f'instance="{instance}", job="{job}"',
        (({series: "1x20 0 1xN"}, 21), ({series: "0xN"}, minutes - 3)),
    )


_LOST = f'bucketworks_volume_ledger_events_total{{{VOLUME}, outcome="lost"}}'
_BUCKET = f'bucketworks_volume_operation_seconds_bucket{{{VOLUME}, operation="write", le="0.004"}}'
_AGE = f"bucketworks_envctl_backup_age_seconds{{{CONSOLE}, {HOME}}}"
_FAILED = f'bucketworks_envctl_environments{{{CONSOLE}, state="failed"}}'
_CERTIFICATE = f"bucketworks_envctl_certificate_expiry_timestamp_seconds{{{CONSOLE}}}"
_BUILD = 'bucketworks_build_info{instance="gw1:9261", job="cowsync", tool="cowsync", version="1.0"}'
_NEWER = 'bucketworks_build_info{instance="pve1:9263", job="pve-s3", tool="pve-s3", version="1.1"}'
_BUDGET = f'bucketworks_pve_month_budget_ratio{{{STORAGE}, limit="requests"}}'

CASES: tuple[Case, ...] = (
    Case("BucketworksWatchdog", {}, 1, ""),
    Case("BucketworksVersionsDiffer", {_NEWER: "1xN"}, 1442, "", (({_NEWER: "1xN"}, 1400), ({_BUILD: "0xN"}, 1442))),
    _down("S3BlockDown", "s3block", "gw1:9260", 3),
    _simple("S3BlockNotServing", VOLUME, "bucketworks_volume_ready", "0xN", 3, "1xN"),
    _simple("S3BlockLeaseRunsOut", VOLUME, "bucketworks_volume_lease_left_seconds", "299xN", 2, "301xN"),
    _simple("S3BlockStoreUnreachable", VOLUME, "bucketworks_volume_store_reachable", "0xN", 3, "1xN"),
    Case(
        "S3BlockStoreErrors",
        {f"bucketworks_volume_store_errors_total{{{VOLUME}}}": "0+6xN"},
        30,
        'instance="gw1:9260", volume="vm1"',
        (({f"bucketworks_volume_store_errors_total{{{VOLUME}}}": "0+4xN"}, 60),),
    ),
    _simple("S3BlockCommitsBehind", VOLUME, "bucketworks_volume_rpo_seconds", "61xN", 6, "60xN"),
    _simple("S3BlockJournalFilling", VOLUME, "bucketworks_volume_journal_fill_ratio", "0.71xN", 2, "0.7xN"),
    _simple("S3BlockStateDiskFull", VOLUME, "bucketworks_volume_state_free_bytes", "999999999xN", 6, "1000000000xN"),
    # Four restarts in half an hour; three are an upgrade that had to be repeated.
    _simple(
        "S3BlockRestarting",
        VOLUME,
        "bucketworks_volume_epoch",
        "3x9 4x4 5x4 6x4 7xN",
        28,
        "3x9 4x4 5x4 6xN",
        held=False,
    ),
    _simple(
        "S3BlockDamage",
        VOLUME,
        "bucketworks_volume_corruptions_total",
        "0x5 1xN",
        10,
        "5xN",
        held=False,
        more='place="journal"',
    ),
    _simple("S3BlockQuota", VOLUME, "bucketworks_volume_allocated_bytes", "91xN", 11, "90xN"),
    Case(
        "S3BlockSlow",
        {_BUCKET: "0+90xN"},
        20,
        'instance="gw1:9260", operation="write", volume="vm1"',
        (({_BUCKET: "0+99.6xN"}, 60),),
    ),
    _simple(
        "S3BlockInitiatorsImpatient",
        VOLUME,
        "bucketworks_volume_lio_task_management_total",
        "4x5 5xN",
        8,
        "9xN",
        held=False,
    ),
    Case("S3BlockLedgerEventsLost", {_LOST: "1x5 2xN"}, 10, f'{VOLUME}, outcome="lost"', (({_LOST: "9xN"}, 90),)),
    _down("CowsyncDown", "cowsync", "gw1:9261", 6),
    _simple("CowsyncLate", MIRROR, "bucketworks_mirror_lag_seconds", "10801xN", 6, "10800xN"),
    _simple("CowsyncHeld", MIRROR, "bucketworks_mirror_held", "1xN", 2, "0xN"),
    _simple("CowsyncFailing", MIRROR, "bucketworks_mirror_last_run_failed", "1xN", 92, "0xN"),
    _simple("CowsyncLocked", MIRROR, "bucketworks_mirror_lock_held", "1xN", 122, "0xN"),
    _simple("CowsyncDrift", MIRROR, "bucketworks_mirror_drifted_lines", "1xN", 2, "0xN"),
    _simple("CowsyncEventsBehind", MIRROR, "bucketworks_mirror_events_lag_seconds", "601xN", 6, "600xN"),
    _simple(
        "CowsyncEventsMalformed", MIRROR, "bucketworks_mirror_events_malformed_lines", "7x5 8xN", 10, "9xN", held=False
    ),
    _simple("CowsyncEventsLost", MIRROR, "bucketworks_mirror_events_lost", "1x5 2xN", 10, "3xN", held=False),
    _simple("LedgerTampered", LEDGER, "bucketworks_ledger_altered_writers", "1xN", 1, "0xN", held=False),
    _down("LedgerDown", "s3integrity", "gw1:9262", 6),
    Case(
        "LedgerSealStale",
        {f"bucketworks_ledger_sealed_timestamp_seconds{{{LEDGER}}}": "0+60x10 600xN"},
        20,
        LEDGER,
        (({f"bucketworks_ledger_sealed_timestamp_seconds{{{LEDGER}}}": "0+60x10 600xN"}, 14),),
    ),
    _simple("LedgerUnhealthy", LEDGER, "bucketworks_ledger_healthy", "0xN", 6, "1xN"),
    _simple("LedgerUnread", LEDGER, "bucketworks_ledger_unread_writers", "1xN", 16, "0xN"),
    _simple("LedgerUnwitnessed", LEDGER, "bucketworks_ledger_cosignatures", "0xN", 16, "1xN"),
    _simple("LedgerUnpublished", LEDGER, "bucketworks_ledger_slots_left", "4xN", 16, "3xN"),
    _simple("LedgerSlotsTaken", LEDGER, "bucketworks_ledger_slots_in_use", "8xN", 11, "7xN"),
    _simple("LedgerCrashes", LEDGER, "bucketworks_ledger_swept_slots", "1x5 6xN", 30, "9xN", held=False),
    _down("PveCoreDown", "pve-s3", "pve1:9263", 6),
    _simple("PveStorageInactive", STORAGE, "bucketworks_pve_active", "0xN", 6, "1xN"),
    Case(
        "PveListingStale",
        {f"bucketworks_pve_listed_timestamp_seconds{{{STORAGE}}}": "0+60x10 600xN"},
        27,
        STORAGE,
        (
            ({f"bucketworks_pve_listed_timestamp_seconds{{{STORAGE}}}": "0+60x10 600xN"}, 19),
            # An inactive storage has an alert of its own.
            (
                {
                    f"bucketworks_pve_listed_timestamp_seconds{{{STORAGE}}}": "0xN",
                    f"bucketworks_pve_active{{{STORAGE}}}": "0xN",
                },
                60,
            ),
        ),
    ),
    _simple("PveNotMounted", STORAGE, "bucketworks_pve_mounted", "0xN", 11, "1xN"),
    _simple("PveBackupOld", STORAGE, "bucketworks_pve_newest_backup_timestamp_seconds", "-691260xN", 62, "-600000xN"),
    _simple("PveQuota", STORAGE, "bucketworks_pve_stored_bytes", "91xN", 11, "90xN"),
    _simple("PveBudget", STORAGE, "bucketworks_pve_month_budget_ratio", "0.91xN", 6, "0.9xN", more='limit="requests"'),
    _simple(
        "PveBudgetSpent", STORAGE, "bucketworks_pve_month_budget_ratio", "1xN", 6, "0.99xN", more='limit="requests"'
    ),
    _down("EnvctlDown", "s3-envctl", "console", 3),
    _simple("EnvctlStoreDown", CONSOLE, "bucketworks_envctl_store_up", "0xN", 6, "1xN"),
    _simple("EnvctlDriverDown", CONSOLE, "bucketworks_envctl_driver_up", "0xN", 6, "1xN", more='driver="pve"'),
    Case("EnvctlBackupLate", {_AGE: "901xN"}, 6, f"{CONSOLE}, {HOME}", (({_AGE: "900xN"}, 60), ({_AGE: "901xN"}, 4))),
    _simple("EnvctlBackupFailing", CONSOLE, "bucketworks_envctl_backup_failing", "1xN", 31, "0xN"),
    _simple("EnvctlGuestSilent", CONSOLE, "bucketworks_envctl_guests_silent", "1xN", 11, "0xN"),
    _simple(
        "EnvctlGuestFenced",
        CONSOLE,
        "bucketworks_envctl_guest_requests_total",
        "3x5 4xN",
        8,
        "9xN",
        held=False,
        more='status="412"',
    ),
    _simple("EnvctlMassChange", CONSOLE, "bucketworks_envctl_mass_changes", "1xN", 1, "0xN", held=False),
    Case("EnvctlJobFailed", {_FAILED: "1xN"}, 1, f'{CONSOLE}, state="failed"', (({_FAILED: "0xN"}, 60),)),
    _simple("EnvctlJobStuck", CONSOLE, "bucketworks_envctl_job_oldest_seconds", "7201xN", 6, "7200xN"),
    _simple("EnvctlOrphans", CONSOLE, "bucketworks_envctl_orphans", "1xN", 62, "0xN", more='driver="pve"'),
    _simple("EnvctlFinding", CONSOLE, "bucketworks_envctl_findings", "1xN", 11, "0xN"),
    _simple("EnvctlAuditLost", CONSOLE, "bucketworks_envctl_audit_lost_total", "2x5 3xN", 10, "9xN", held=False),
    Case(
        "EnvctlCertificateEnds",
        {_CERTIFICATE: "1209600xN"},
        62,
        CONSOLE,
        (({_CERTIFICATE: "1209600xN"}, 58), ({_CERTIFICATE: "1300000xN"}, 62)),
    ),
    Case("EnvctlCertificateEnded", {_CERTIFICATE: "86400xN"}, 2, CONSOLE, (({_CERTIFICATE: "100000xN"}, 2),)),
)

FURTHER: tuple[Case, ...] = (
    # The other halves of alerts that watch two figures.
    _simple("S3BlockNotServing", VOLUME, "bucketworks_volume_lease_left_seconds", "0xN", 3, "1xN"),
    _simple(
        "S3BlockJournalFilling", VOLUME, "bucketworks_volume_writes_refused_total", "0x5 1xN", 8, "9xN", held=False
    ),
    _simple("LedgerUnpublished", LEDGER, "bucketworks_ledger_local_bytes", "1000000001xN", 16, "1000000000xN"),
    _simple("PveStorageInactive", STORAGE, "bucketworks_pve_unusable", "1xN", 6, "0xN"),
    _simple("EnvctlJobFailed", CONSOLE, "bucketworks_envctl_jobs_failed_recently", "1xN", 1, "0xN", held=False),
    Case("PveBudget", {_BUDGET: "1.2xN"}, 6, f'{STORAGE}, limit="requests"'),
)
