"""What the dashboards show: one table of panels.

One rule: a panel says in its description what is good and what is not; where an alert watches the same figure, the panel
turns colour at the value at which that alert fires. Tests hold every metric, label and limit in here to the tables of the
tools and to deploy/prometheus-alerts.yml.
"""

from collections.abc import Callable
from typing import Literal

from grafana.draw import Dashboard, Limit, Panel, Query, Variable, drawn

UP = ((0, "down", "red"), (1, "up", "green"))
YES_GOOD = ((0, "no", "red"), (1, "yes", "green"))
NO_GOOD = ((0, "no", "green"), (1, "yes", "red"))
_RATE = "$__rate_interval"


def _stat(
    title: str, description: str, expression: str, unit: str, *limits: Limit, legend: str = "", width: int = 4
) -> Panel:
    return Panel(title, description, (Query(expression, legend),), unit, "stat", width, limits)


def _count(title: str, description: str, expression: str, alarm: Literal["warning", "critical"]) -> Panel:
    """Anything above 0 is in the alarm's colour."""
    return Panel(title, description, (Query(expression, ""),), "none", "stat", 4, alarm=alarm)


def _word(title: str, description: str, expression: str, legend: str, words: tuple[tuple[int, str, str], ...]) -> Panel:
    return Panel(title, description, (Query(expression, legend),), "none", "stat", 6, (), words)


def _instance(tool: str) -> Variable:
    return Variable("instance", "Host", f'bucketworks_build_info{{tool="{tool}"}}', "instance")


OVERVIEW = Dashboard(
    "bucketworks-overview",
    "Bucketworks: overview",
    "One look at everything: what is up, what an operator has to look at, what would be lost now, what it costs.",
    (),
    (
        (
            "Now",
            (
                _count(
                    "Critical alerts",
                    "Alerts of severity critical that fire. Anything but 0 wants somebody now; the table below names them.",
                    'count(ALERTS{alertstate="firing", severity="critical"}) or vector(0)',
                    "critical",
                ),
                _count(
                    "Warnings",
                    "Alerts of severity warning that fire: to be looked at today.",
                    'count(ALERTS{alertstate="firing", severity="warning"}) or vector(0)',
                    "warning",
                ),
                _count(
                    "Services down",
                    "Services that Prometheus knows and that do not answer it.",
                    'sum(up{job=~"s3block|cowsync|s3integrity|pve-s3|s3-envctl"} == bool 0)',
                    "critical",
                ),
                _stat(
                    "Volumes that take commands",
                    "Served volumes that are ready. Less than there are: some attach, are fenced out or lost their lease.",
                    "sum(bucketworks_volume_ready)",
                    "none",
                ),
                _stat(
                    "Worst RPO of a volume",
                    "Age of the oldest write that is on one host alone: what losing that host now would cost.",
                    "max(bucketworks_volume_rpo_seconds)",
                    "s",
                    Limit(60, "S3BlockCommitsBehind", "warning"),
                ),
                _stat(
                    "Oldest home",
                    "The highest age of a home's backup at the console.",
                    "max(bucketworks_envctl_backup_oldest_seconds)",
                    "s",
                ),
            ),
        ),
        (
            "Alerts and versions",
            (
                Panel(
                    "Alerts that fire",
                    "Empty is good. The runbook has an entry for each.",
                    (Query('ALERTS{alertstate="firing", severity=~"warning|critical"}', ""),),
                    "none",
                    "table",
                    14,
                ),
                Panel(
                    "Programs",
                    "Which program answers where, and its version. After an upgrade all should be the same within a day.",
                    (Query("bucketworks_build_info", ""),),
                    "none",
                    "table",
                    10,
                ),
            ),
        ),
        (
            "What would be lost, and what waits",
            (
                Panel(
                    "Volumes: writes on one host alone",
                    "Age of the oldest write that the bucket does not have. Some seconds are usual.",
                    (Query("bucketworks_volume_rpo_seconds", "{{volume}}"),),
                    "s",
                    limits=(Limit(60, "S3BlockCommitsBehind", "warning"),),
                ),
                Panel(
                    "Mirrors: lag",
                    "Since the beginning of the last complete run, in intervals of the mirror. Above 3 the mirror is late.",
                    (Query("bucketworks_mirror_lag_seconds / bucketworks_mirror_every_seconds", "{{mirror}}"),),
                    "none",
                    limits=(Limit(3, "CowsyncLate", "critical"),),
                ),
                Panel(
                    "Ledgers: age of the seal",
                    "Since the ledger was last sealed: what came later can be cut off unseen.",
                    (Query("time() - bucketworks_ledger_sealed_timestamp_seconds", "{{ledger}}"),),
                    "s",
                    limits=(Limit(300, "LedgerSealStale", "critical"),),
                ),
            ),
        ),
        (
            "Money",
            (
                Panel(
                    "Volumes: requests and reads, per day",
                    "Estimate by the endpoints' price tables, from the last hour. Storage at rest is not in it.",
                    (
                        Query(
                            "sum by (currency, reason) (rate(bucketworks_volume_cost_total[1h])) * 86400",
                            "{{reason}} {{currency}}",
                        ),
                    ),
                    "none",
                    width=12,
                ),
                Panel(
                    "Proxmox VE storages: this month",
                    "What this month's requests of all nodes cost, by the endpoints' prices.",
                    (Query("sum by (storage, currency) (bucketworks_pve_month_cost)", "{{storage}} {{currency}}"),),
                    "none",
                    width=12,
                ),
            ),
        ),
    ),
)

_V = '{instance=~"$instance", volume=~"$volume"}'


def _volume(more: str = "") -> str:
    return _V if not more else _V[:-1] + f", {more}}}"


def _latency(operation: str) -> tuple[Query, ...]:
    chosen = _volume(f'operation="{operation}"')
    buckets = f"rate(bucketworks_volume_operation_seconds_bucket{chosen}[{_RATE}])"
    return tuple(
        Query(f"histogram_quantile({quantile}, sum by (volume, le) ({buckets}))", f"{{{{volume}}}} {name}")
        for quantile, name in ((0.5, "median"), (0.99, "99 %"))
    )


def _rate(metric: str, legend: str, more: str = "", by: str = "") -> Query:
    text = f"rate({metric}{_volume(more)}[{_RATE}])"
    return Query(f"sum by ({by}) ({text})" if by else text, legend)


VOLUMES = Dashboard(
    "bucketworks-volumes",
    "Bucketworks: volumes",
    "Served volumes: whether they take commands, what only their host has, how fast they answer, what they ask of the store.",
    (_instance("s3block"), Variable("volume", "Volume", 'bucketworks_volume_ready{instance=~"$instance"}', "volume")),
    (
        (
            "Health",
            (
                _word(
                    "Takes commands",
                    "Whether the volume is attached and serves. No: it attaches, stops, was fenced out, or has no lease.",
                    f"bucketworks_volume_ready{_volume()}",
                    "{{volume}}",
                    YES_GOOD,
                ),
                _word(
                    "Store answers",
                    "No from a failed call that is repeated until one works. Writes then collect in the journal.",
                    f"bucketworks_volume_store_reachable{_volume()}",
                    "{{volume}}",
                    YES_GOOD,
                ),
                _stat(
                    "Lease left",
                    "Share of the lease that is left. Two thirds and more are usual; at 0 the volume waits.",
                    f"bucketworks_volume_lease_left_seconds{_volume()} / bucketworks_volume_lease_seconds{_volume()}",
                    "percentunit",
                    Limit(0.5, "S3BlockLeaseRunsOut", "critical", below=True),
                    legend="{{volume}}",
                    width=6,
                ),
                _stat(
                    "Checksums that did not hold",
                    "In the last hour. Anything but 0 is damage: see the runbook before you restart anything.",
                    f"sum by (volume) (increase(bucketworks_volume_corruptions_total{_volume()}[1h]))",
                    "none",
                    Limit(0, "S3BlockDamage", "critical"),
                    legend="{{volume}}",
                    width=6,
                ),
            ),
        ),
        (
            "What only this host has",
            (
                Panel(
                    "Age of the oldest write not in the bucket",
                    "The recovery point: losing the host now loses what is younger. Bound by commit_interval_s while the store "
                    "keeps up.",
                    (Query(f"bucketworks_volume_rpo_seconds{_volume()}", "{{volume}}"),),
                    "s",
                    limits=(Limit(60, "S3BlockCommitsBehind", "warning"),),
                ),
                Panel(
                    "Bytes not in the bucket",
                    "How much of the journal the bucket does not have.",
                    (Query(f"bucketworks_volume_rpo_bytes{_volume()}", "{{volume}}"),),
                    "bytes",
                ),
                Panel(
                    "Journal fill",
                    "From 50 % on answers are held back, at 100 % writes are told BUSY.",
                    (Query(f"bucketworks_volume_journal_fill_ratio{_volume()}", "{{volume}}"),),
                    "percentunit",
                    limits=(Limit(0.7, "S3BlockJournalFilling", "critical"),),
                ),
                Panel(
                    "Free on the disk of the state directory",
                    "Journal, map and cache are there. The map grows with what is written.",
                    (Query(f"bucketworks_volume_state_free_bytes{_volume()}", "{{volume}} {{instance}}"),),
                    "bytes",
                    limits=(Limit(1e9, "S3BlockStateDiskFull", "critical", below=True),),
                ),
                Panel(
                    "Answers held back, writes refused",
                    "Seconds per second that answers waited for room in the journal, and writes that found none.",
                    (
                        _rate("bucketworks_volume_writes_held_seconds_total", "{{volume}} held"),
                        _rate("bucketworks_volume_writes_refused_total", "{{volume}} refused"),
                    ),
                    "none",
                ),
                Panel(
                    "Quota",
                    "Share of quota_bytes that the map holds. Volumes without a quota are not shown.",
                    (
                        Query(
                            f"bucketworks_volume_allocated_bytes{_volume()} / (bucketworks_volume_quota_bytes{_volume()} > 0)",
                            "{{volume}}",
                        ),
                    ),
                    "percentunit",
                    limits=(Limit(0.9, "S3BlockQuota", "warning"),),
                ),
            ),
        ),
        (
            "What initiators see",
            (
                Panel(
                    "Commands",
                    "By kind, per second.",
                    (_rate("bucketworks_volume_operations_total", "{{volume}} {{operation}}"),),
                    "ops",
                ),
                Panel(
                    "Throughput",
                    "Bytes that initiators read and wrote.",
                    (_rate("bucketworks_volume_bytes_total", "{{volume}} {{operation}}"),),
                    "Bps",
                ),
                Panel(
                    "Sessions",
                    "iSCSI sessions of the volume's target. Two initiators on one volume need a cluster file system.",
                    (Query(f"bucketworks_volume_sessions{_volume()}", "{{volume}}"),),
                    "none",
                ),
                Panel(
                    "Reads take",
                    "Until the answer is ready. Those answered by this host take below a millisecond, others a round trip.",
                    _latency("read"),
                    "s",
                ),
                Panel(
                    "Writes take",
                    "Until the answer is ready. Above 2 s at 99 % an alert fires.",
                    _latency("write"),
                    "s",
                    limits=(Limit(2, "S3BlockSlow", "warning"),),
                ),
                Panel(
                    "Flushes take",
                    'With flush = "local" one sync of the journal\'s disk; with "s3" a commit.',
                    _latency("flush"),
                    "s",
                    limits=(Limit(2, "S3BlockSlow", "warning"),),
                ),
                Panel(
                    "Reads answered by this host",
                    "Share of reads that did not wait for the store. Low for long: the cache is smaller than what is read.",
                    (
                        Query(
                            f"rate(bucketworks_volume_read_hits_total{_volume()}[{_RATE}]) / "
                            f"(rate(bucketworks_volume_read_hits_total{_volume()}[{_RATE}]) + "
                            f"rate(bucketworks_volume_read_misses_total{_volume()}[{_RATE}]))",
                            "{{volume}}",
                        ),
                    ),
                    "percentunit",
                ),
                Panel(
                    "Frames read ahead and evicted",
                    "Evictions as many as fetches: the cache turns over without use.",
                    (
                        _rate("bucketworks_volume_readahead_frames_total", "{{volume}} ahead"),
                        _rate("bucketworks_volume_cache_evictions_total", "{{volume}} evicted"),
                    ),
                    "ops",
                ),
                Panel(
                    "Size and what is allocated",
                    "What the map holds of the size of the disk.",
                    (
                        Query(f"bucketworks_volume_size_bytes{_volume()}", "{{volume}} size"),
                        Query(f"bucketworks_volume_allocated_bytes{_volume()}", "{{volume}} allocated"),
                    ),
                    "bytes",
                ),
            ),
        ),
        (
            "The store",
            (
                Panel(
                    "Requests",
                    "By what they are charged as.",
                    (_rate("bucketworks_volume_store_requests_total", "{{volume}} {{operation}}"),),
                    "reqps",
                ),
                Panel(
                    "Bytes",
                    "Sent to the store and had from it.",
                    (_rate("bucketworks_volume_store_bytes_total", "{{volume}} {{direction}}"),),
                    "Bps",
                ),
                Panel(
                    "Errors and retries",
                    "Retries are repeated below and cost time; errors are what was left after them.",
                    (
                        _rate("bucketworks_volume_store_errors_total", "{{volume}} errors"),
                        _rate("bucketworks_volume_store_retries_total", "{{volume}} retries"),
                    ),
                    "reqps",
                ),
                Panel(
                    "Commits",
                    "Records put in the log, per second.",
                    (_rate("bucketworks_volume_commits_total", "{{volume}}"),),
                    "ops",
                ),
                Panel(
                    "Write amplification",
                    "Bytes sent to the store per byte of host writes since the attachment. Small random writes raise it.",
                    (Query(f"bucketworks_volume_write_amplification_ratio{_volume()}", "{{volume}}"),),
                    "none",
                ),
                Panel(
                    "Money per day",
                    "Estimate by the endpoint's price table, from the last hour; storage at rest is not in it.",
                    (
                        Query(
                            f"sum by (volume, reason, currency) (rate(bucketworks_volume_cost_total{_volume()}[1h])) * 86400",
                            "{{volume}} {{reason}} {{currency}}",
                        ),
                    ),
                    "none",
                ),
            ),
        ),
    ),
)

_M = '{instance=~"$instance", mirror=~"$mirror"}'
MIRRORS = Dashboard(
    "bucketworks-mirrors",
    "Bucketworks: mirrors",
    "Mirrors kept by cowsync watch: how old they are, what the guard holds, what fails.",
    (_instance("cowsync"), Variable("mirror", "Mirror", 'bucketworks_mirror_healthy{instance=~"$instance"}', "mirror")),
    (
        (
            "Health",
            (
                _word("Healthy", "What /healthz says.", f"bucketworks_mirror_healthy{_M}", "{{mirror}}", YES_GOOD),
                _word(
                    "Held by the guard",
                    "Yes: the newest plan would change so much that somebody has to look at it. The mirror is untouched.",
                    f"bucketworks_mirror_held{_M}",
                    "{{mirror}}",
                    NO_GOOD,
                ),
                _word(
                    "Last run failed",
                    "Whether the last run did not come to its end, or left lines that failed.",
                    f"bucketworks_mirror_last_run_failed{_M}",
                    "{{mirror}}",
                    NO_GOOD,
                ),
                _word(
                    "Another process has it",
                    "Whether the service found another process at work when its run was due.",
                    f"bucketworks_mirror_lock_held{_M}",
                    "{{mirror}}",
                    NO_GOOD,
                ),
            ),
        ),
        (
            "How old",
            (
                Panel(
                    "Lag",
                    "Since the beginning of the last complete run: what is newer may not be mirrored.",
                    (Query(f"bucketworks_mirror_lag_seconds{_M}", "{{mirror}}"),),
                    "s",
                ),
                Panel(
                    "Lag in intervals",
                    "Lag divided by the interval of the mirror. Up to 1 and the length of a run is usual.",
                    (
                        Query(
                            f"bucketworks_mirror_lag_seconds{_M} / bucketworks_mirror_every_seconds{_M}", "{{mirror}}"
                        ),
                    ),
                    "none",
                    limits=(Limit(3, "CowsyncLate", "critical"),),
                ),
                Panel(
                    "A run takes",
                    "From its listing to its publishing. Near the interval: runs follow each other without a pause.",
                    (Query(f"bucketworks_mirror_last_run_duration_seconds{_M}", "{{mirror}}"),),
                    "s",
                ),
            ),
        ),
        (
            "What it holds",
            (
                Panel(
                    "Objects",
                    "That the last complete listing of the source found. A cliff is what the guard is for.",
                    (Query(f"bucketworks_mirror_keys{_M}", "{{mirror}}"),),
                    "none",
                    width=6,
                ),
                Panel(
                    "Bytes", "Their size.", (Query(f"bucketworks_mirror_bytes{_M}", "{{mirror}}"),), "bytes", width=6
                ),
                Panel(
                    "Lines of the plan",
                    "What changed at the source from one listing to the next.",
                    (Query(f"bucketworks_mirror_changes{_M}", "{{mirror}}"),),
                    "none",
                    width=6,
                ),
                Panel(
                    "Lines failed and drifted",
                    "Failed ones are tried again by the next run; drifted ones were written on the mirror by others.",
                    (
                        Query(f"bucketworks_mirror_failed_lines{_M}", "{{mirror}} failed"),
                        Query(f"bucketworks_mirror_drifted_lines{_M}", "{{mirror}} drifted"),
                    ),
                    "none",
                    width=6,
                    limits=(Limit(0, "CowsyncDrift", "warning"),),
                ),
            ),
        ),
        (
            "Events",
            (
                Panel(
                    "Oldest event that is not handled",
                    "Seconds are usual; the next listing brings what events do not. Mirrors without a feed are not shown.",
                    (Query(f"bucketworks_mirror_events_lag_seconds{_M}", "{{mirror}}"),),
                    "s",
                    width=12,
                    limits=(Limit(600, "CowsyncEventsBehind", "warning"),),
                ),
                Panel(
                    "Events handled, not understood, lost",
                    "Lines of the feed in an hour.",
                    (
                        Query(f"delta(bucketworks_mirror_events_lines{_M}[1h])", "{{mirror}} handled"),
                        Query(f"delta(bucketworks_mirror_events_malformed_lines{_M}[1h])", "{{mirror}} not understood"),
                        Query(f"delta(bucketworks_mirror_events_lost{_M}[1h])", "{{mirror}} lost"),
                    ),
                    "none",
                    width=12,
                ),
            ),
        ),
    ),
)

_L = '{instance=~"$instance", ledger=~"$ledger"}'
LEDGERS = Dashboard(
    "bucketworks-ledgers",
    "Bucketworks: ledgers",
    "Ledgers: whether the evidence holds, how old its seal is, what waits on hosts.",
    (
        _instance("s3integrity"),
        Variable("ledger", "Ledger", 'bucketworks_ledger_healthy{instance=~"$instance"}', "ledger"),
    ),
    (
        (
            "Evidence",
            (
                _word("Healthy", "What /healthz says.", f"bucketworks_ledger_healthy{_L}", "{{ledger}}", YES_GOOD),
                _stat(
                    "Writers that were altered",
                    "Writers whose logs do not hold: somebody changed, cut or replaced them.",
                    f"bucketworks_ledger_altered_writers{_L}",
                    "none",
                    Limit(0, "LedgerTampered", "critical"),
                    legend="{{ledger}}",
                    width=6,
                ),
                _stat(
                    "Writers that could not be read",
                    "What they recorded since is not covered by the newest checkpoint.",
                    f"bucketworks_ledger_unread_writers{_L}",
                    "none",
                    Limit(0, "LedgerUnread", "warning"),
                    legend="{{ledger}}",
                    width=6,
                ),
                _stat(
                    "Cosignatures",
                    "Witnesses that cosigned the newest checkpoint. Ledgers without witnesses are not shown.",
                    f"bucketworks_ledger_cosignatures{_L}",
                    "none",
                    legend="{{ledger}}",
                    width=6,
                ),
            ),
        ),
        (
            "Sealing",
            (
                Panel(
                    "Age of the seal",
                    "Since the heads of the writers were last sealed; what came later can be cut off unseen.",
                    (Query(f"time() - bucketworks_ledger_sealed_timestamp_seconds{_L}", "{{ledger}}"),),
                    "s",
                    limits=(Limit(300, "LedgerSealStale", "critical"),),
                ),
                Panel(
                    "Records",
                    "Of the ledger's own log. It only grows: a step down is a ledger that was replaced.",
                    (Query(f"bucketworks_ledger_size{_L}", "{{ledger}}"),),
                    "none",
                ),
                Panel(
                    "Writers, and the age of the oldest head",
                    "A writer that records nothing has an old head, which is no fault.",
                    (
                        Query(f"bucketworks_ledger_writers{_L}", "{{ledger}} writers"),
                        Query(
                            f"time() - bucketworks_ledger_oldest_head_timestamp_seconds{_L}",
                            "{{ledger}} oldest head",
                            "s",
                        ),
                    ),
                    "none",
                ),
            ),
        ),
        (
            "This host's slots",
            (
                Panel(
                    "Slots",
                    "In use of those there are. All in use: a further process is refused.",
                    (
                        Query(f"bucketworks_ledger_slots{_L}", "{{ledger}} {{instance}} there"),
                        Query(f"bucketworks_ledger_slots_in_use{_L}", "{{ledger}} {{instance}} in use"),
                    ),
                    "none",
                ),
                Panel(
                    "Slots left with records",
                    "Not published yet, and used by no process: a crash left them, and the service brings them in order.",
                    (
                        Query(
                            f"bucketworks_ledger_slots_left{_L} - bucketworks_ledger_slots_in_use{_L}",
                            "{{ledger}} {{instance}}",
                        ),
                    ),
                    "none",
                ),
                Panel(
                    "Local logs",
                    "Records that are on this host. They go when they are published.",
                    (Query(f"bucketworks_ledger_local_bytes{_L}", "{{ledger}} {{instance}}"),),
                    "bytes",
                    limits=(Limit(1e9, "LedgerUnpublished", "warning"),),
                ),
            ),
        ),
    ),
)

_P = '{instance=~"$instance", storage=~"$storage"}'
STORAGES = Dashboard(
    "bucketworks-pve",
    "Bucketworks: Proxmox VE storages",
    "Storages of Proxmox VE nodes: whether they are active, how old backups are, what they ask of the store and cost.",
    (_instance("pve-s3"), Variable("storage", "Storage", 'bucketworks_pve_unusable{instance=~"$instance"}', "storage")),
    (
        (
            "Health",
            (
                _word(
                    "Active",
                    "Whether Proxmox VE is told that the storage works. No: backups to it fail.",
                    f"bucketworks_pve_active{_P}",
                    "{{storage}} {{instance}}",
                    YES_GOOD,
                ),
                _word(
                    "Mounted",
                    "Whether a living process has it mounted. Storages of disks are not shown.",
                    f"bucketworks_pve_mounted{_P}",
                    "{{storage}} {{instance}}",
                    YES_GOOD,
                ),
                _stat(
                    "Newest backup",
                    "Its age. Above eight days an alert fires; for daily jobs a day and two hours is the limit to set.",
                    f"min by (storage) (time() - bucketworks_pve_newest_backup_timestamp_seconds{_P})",
                    "s",
                    Limit(691200, "PveBackupOld", "warning"),
                    legend="{{storage}}",
                    width=6,
                ),
                _stat(
                    "Budget used",
                    "Share of this month's budget by its limit. Storages without a budget are not shown.",
                    f"max by (storage, limit) (bucketworks_pve_month_budget_ratio{_P})",
                    "percentunit",
                    Limit(0.9, "PveBudget", "warning"),
                    Limit(1, "PveBudgetSpent", "critical"),
                    legend="{{storage}} {{limit}}",
                    width=6,
                ),
            ),
        ),
        (
            "The bucket",
            (
                Panel(
                    "Age of the listing",
                    "What other nodes put there is shown after the next listing.",
                    (Query(f"time() - bucketworks_pve_listed_timestamp_seconds{_P}", "{{storage}} {{instance}}"),),
                    "s",
                    limits=(Limit(600, "PveListingStale", "warning"),),
                ),
                Panel(
                    "Stored",
                    "Size in the bucket.",
                    (Query(f"max by (storage) (bucketworks_pve_stored_bytes{_P})", "{{storage}}"),),
                    "bytes",
                ),
                Panel(
                    "Quota used",
                    "Share of bw-quota. Storages without one are not shown.",
                    (
                        Query(
                            f"max by (storage) (bucketworks_pve_stored_bytes{_P} / bucketworks_pve_quota_bytes{_P})",
                            "{{storage}}",
                        ),
                    ),
                    "percentunit",
                    limits=(Limit(0.9, "PveQuota", "warning"),),
                ),
                Panel(
                    "Objects",
                    "Below the storage's prefix, sidecars and indexes too.",
                    (Query(f"max by (storage) (bucketworks_pve_objects{_P})", "{{storage}}"),),
                    "none",
                ),
                Panel(
                    "A listing takes",
                    "And how many of them fail in an hour.",
                    (
                        Query(f"bucketworks_pve_refresh_duration_seconds{_P}", "{{storage}} {{instance}}"),
                        Query(
                            f"increase(bucketworks_pve_refresh_failures_total{_P}[1h])",
                            "{{storage}} {{instance}} failures",
                            "none",
                        ),
                    ),
                    "s",
                ),
                Panel(
                    "Local copies",
                    "ISO images and templates in the cache, and what it may take.",
                    (
                        Query(f"bucketworks_pve_cache_bytes{_P}", "{{storage}} {{instance}}"),
                        Query(f"bucketworks_pve_cache_bound_bytes{_P}", "{{storage}} {{instance}} bound"),
                    ),
                    "bytes",
                ),
            ),
        ),
        (
            "Work and money",
            (
                Panel(
                    "Requests",
                    "Of the nodes to the store, by method, each attempt.",
                    (
                        Query(
                            f"sum by (storage, method) (rate(bucketworks_pve_requests_total{_P}[{_RATE}]))",
                            "{{storage}} {{method}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Bytes",
                    "That they carried, by direction.",
                    (
                        Query(
                            f"sum by (storage, direction) (rate(bucketworks_pve_bytes_total{_P}[{_RATE}]))",
                            "{{storage}} {{direction}}",
                        ),
                    ),
                    "Bps",
                ),
                Panel(
                    "Calls of Proxmox VE",
                    "Answered by the cores, by outcome. Errors are the codes that the socket's document names.",
                    (
                        Query(
                            f'sum by (outcome) (rate(bucketworks_pve_calls_total{{instance=~"$instance"}}[{_RATE}]))',
                            "{{outcome}}",
                        ),
                    ),
                    "ops",
                ),
                Panel(
                    "Calls that wait for the store",
                    "By lane. Always as many as a lane takes: the store is slower than what is asked.",
                    (Query(f"sum by (storage, lane) (bucketworks_pve_calls_under_way{_P})", "{{storage}} {{lane}}"),),
                    "none",
                    width=12,
                ),
                Panel(
                    "Cost this month",
                    "By the endpoint's prices, of all nodes together; storage at rest is not in it.",
                    (
                        Query(
                            f"sum by (storage, reason, currency) (bucketworks_pve_month_cost{_P})",
                            "{{storage}} {{reason}} {{currency}}",
                        ),
                    ),
                    "none",
                    width=12,
                ),
            ),
        ),
    ),
)

_E = '{instance=~"$instance"}'
CONSOLE = Dashboard(
    "bucketworks-console",
    "Bucketworks: console",
    "The console: users' environments, the age of their homes' backups, jobs, machines and hypervisors.",
    (_instance("s3-envctl"),),
    (
        (
            "Health",
            (
                _word(
                    "Homes' store",
                    "Whether it answers. Down: nothing is saved.",
                    f"bucketworks_envctl_store_up{_E}",
                    "",
                    UP,
                ),
                _word(
                    "Hypervisors",
                    "Whether each answers. Down: nothing is made, started or stopped there.",
                    f"min by (driver) (bucketworks_envctl_driver_up{_E})",
                    "{{driver}}",
                    UP,
                ),
                _stat(
                    "Backups that fail",
                    "Ready environments whose last attempt to save the home failed.",
                    f"max(bucketworks_envctl_backup_failing{_E})",
                    "none",
                    Limit(0, "EnvctlBackupFailing", "warning"),
                ),
                _stat(
                    "Mass changes",
                    "In the last 24 hours: a large part of a home was changed or removed at once.",
                    f"max(bucketworks_envctl_mass_changes{_E})",
                    "none",
                    Limit(0, "EnvctlMassChange", "critical"),
                ),
                _stat(
                    "Certificate ends in",
                    "Of the console's own certificate. Not shown where a proxy has TLS.",
                    f"min(bucketworks_envctl_certificate_expiry_timestamp_seconds{_E} - time())",
                    "s",
                    Limit(1209600, "EnvctlCertificateEnds", "warning", below=True),
                    Limit(86400, "EnvctlCertificateEnded", "critical", below=True),
                ),
            ),
        ),
        (
            "Homes",
            (
                Panel(
                    "Age of backups",
                    "Of ready environments. Above three intervals an alert fires.",
                    (
                        Query(
                            f"max by (environment, owner) (bucketworks_envctl_backup_age_seconds{_E})",
                            "{{owner}} {{environment}}",
                        ),
                    ),
                    "s",
                    width=12,
                ),
                Panel(
                    "Stored",
                    "What each home takes in the bucket, all backups together.",
                    (
                        Query(
                            f"max by (environment, owner) (bucketworks_envctl_stored_bytes{_E})",
                            "{{owner}} {{environment}}",
                        ),
                    ),
                    "bytes",
                    width=12,
                ),
            ),
        ),
        (
            "Environments and jobs",
            (
                Panel(
                    "Environments",
                    "By state. failed ones wait for somebody to decide.",
                    (Query(f"max by (state) (bucketworks_envctl_environments{_E})", "{{state}}"),),
                    "none",
                ),
                Panel(
                    "Jobs",
                    "That wait or are under way.",
                    (Query(f"max by (state) (bucketworks_envctl_jobs{_E})", "{{state}}"),),
                    "none",
                ),
                Panel(
                    "Oldest job",
                    "Age of the oldest job that waits or is under way; nothing where there is none.",
                    (Query(f"max(bucketworks_envctl_job_oldest_seconds{_E})", "oldest"),),
                    "s",
                    limits=(Limit(7200, "EnvctlJobStuck", "warning"),),
                ),
                Panel(
                    "Jobs that ended",
                    "In an hour, by kind and how they ended.",
                    (
                        Query(
                            f"sum by (kind, state) (increase(bucketworks_envctl_jobs_ended_total{_E}[1h]))",
                            "{{kind}} {{state}}",
                        ),
                    ),
                    "none",
                ),
                Panel(
                    "Machines",
                    "That run, and whose agents were heard of or are silent.",
                    (
                        Query(f"max(bucketworks_envctl_running{_E})", "run"),
                        Query(f"max(bucketworks_envctl_guests_seen{_E})", "heard of"),
                        Query(f"max(bucketworks_envctl_guests_silent{_E})", "silent"),
                    ),
                    "none",
                ),
                Panel(
                    "Findings and orphans",
                    "Machines that are not as they should be, and machines that no environment has.",
                    (
                        Query(f"max(bucketworks_envctl_findings{_E})", "findings"),
                        Query(f"max by (driver) (bucketworks_envctl_orphans{_E})", "orphans {{driver}}"),
                    ),
                    "none",
                    limits=(Limit(0, "EnvctlFinding", "warning"),),
                ),
            ),
        ),
        (
            "This process",
            (
                Panel(
                    "Requests of agents",
                    "By HTTP status. 412 is a machine that lost its home to a newer one.",
                    (
                        Query(
                            f"sum by (status) (rate(bucketworks_envctl_guest_requests_total{_E}[{_RATE}]))",
                            "{{status}}",
                        ),
                    ),
                    "reqps",
                ),
                Panel(
                    "Screens and terminals",
                    "Open through each process.",
                    (Query(f"bucketworks_envctl_consoles_open{_E}", "{{instance}}"),),
                    "none",
                ),
                Panel(
                    "Nodes that are up",
                    "By hypervisor, at the last look.",
                    (Query(f"max by (driver) (bucketworks_envctl_nodes_online{_E})", "{{driver}}"),),
                    "none",
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, VOLUMES, MIRRORS, LEDGERS, STORAGES, CONSOLE)


def files() -> dict[str, Callable[[], str]]:
    """What is drawn, by path in the tree."""

    def drawer(board: Dashboard) -> Callable[[], str]:
        return lambda: drawn(board, DASHBOARDS)

    return {f"deploy/grafana/dashboards/{board.uid}.json": drawer(board) for board in DASHBOARDS}
