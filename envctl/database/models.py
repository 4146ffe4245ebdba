"""Rows. One set of models for SQLite and PostgreSQL; a change here comes with a migration (`migrations/`).

One rule: the database is what the console decided and was told; what a hypervisor or a bucket holds is asked there.
Moments are Unix seconds as floats (`*_at`), sizes are in the unit at the end of the name, identifiers are ULIDs
(`envctl.identifiers`). Secrets are hashed (tokens, logins, tickets: SHA-256 of 256 random bits; passwords: argon2id) or
sealed (`totp_secret`).
"""

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from envctl.states import EnvironmentState, JobState

ID = String(26)
HASH = String(64)
NAME = String(64)
COUNTER = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up only an INTEGER."""


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    display_name: Mapped[str] = mapped_column(String(128), default="")
    email: Mapped[str] = mapped_column(String(254), default="")
    role: Mapped[str] = mapped_column(String(16), default="user")
    """`user`, `operator` (all environments, jobs, orphans; no people, no settings) or `admin`."""
    password_hash: Mapped[str | None] = mapped_column(String(256))
    password_must_change: Mapped[bool] = mapped_column(default=False)
    totp_secret: Mapped[str | None] = mapped_column(String(256))
    """Sealed with the console's key file."""
    totp_confirmed: Mapped[bool] = mapped_column(default=False)
    totp_last_step: Mapped[int] = mapped_column(BigInteger, default=0)
    """A code counts once (RFC 6238, 5.2)."""
    oidc_issuer: Mapped[str | None] = mapped_column(String(256))
    oidc_subject: Mapped[str | None] = mapped_column(String(256))
    ssh_keys: Mapped[list[str]] = mapped_column(JSON, default=list)
    theme: Mapped[str] = mapped_column(String(8), default="system")
    enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[float] = mapped_column(Float)
    last_login_at: Mapped[float | None] = mapped_column(Float)
    __table_args__ = (UniqueConstraint("oidc_issuer", "oidc_subject"),)


class RecoveryCode(Base):
    __tablename__ = "recovery_codes"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    code_hash: Mapped[str] = mapped_column(HASH)
    used_at: Mapped[float | None] = mapped_column(Float)


class Group(Base):
    __tablename__ = "groups"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    oidc_value: Mapped[str | None] = mapped_column(String(256), unique=True)
    """The value of the groups claim that makes somebody a member at login."""
    role: Mapped[str | None] = mapped_column(String(16))
    """Its members have at least this role."""
    created_at: Mapped[float] = mapped_column(Float)


class Membership(Base):
    __tablename__ = "memberships"
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    from_oidc: Mapped[bool] = mapped_column(default=False)


class Quota(Base):
    """Limits; null: none of this row. A user's row comes before those of groups (the widest of them), those before the default;
    a template's holds beside it, and the stricter of the two counts (`accounts.quotas`)."""

    __tablename__ = "quotas"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    subject_kind: Mapped[str] = mapped_column(String(16))
    """`default`, `user`, `group` or `template`."""
    subject_id: Mapped[str] = mapped_column(ID, default="")
    environments: Mapped[int | None]
    running: Mapped[int | None]
    cores: Mapped[int | None]
    """Of running environments together, as memory; disk counts for all that are not deleted."""
    memory_mib: Mapped[int | None]
    disk_gib: Mapped[int | None]
    home_gib: Mapped[int | None]
    """Of all homes together, as stored."""
    __table_args__ = (UniqueConstraint("subject_kind", "subject_id"),)


class Login(Base):
    """Somebody signed in with a browser. The cookie holds 256 random bits, this row their hash."""

    __tablename__ = "logins"
    id_hash: Mapped[str] = mapped_column(HASH, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    csrf_token: Mapped[str] = mapped_column(String(64))
    stage: Mapped[str] = mapped_column(String(16))
    """`password` (the second factor is awaited) or `full`."""
    created_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
    address: Mapped[str] = mapped_column(String(64))
    agent: Mapped[str] = mapped_column(String(256), default="")


class ApiToken(Base):
    __tablename__ = "api_tokens"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(NAME)
    token_hash: Mapped[str] = mapped_column(HASH, unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)
    last_used_from: Mapped[str] = mapped_column(String(64), default="")
    revoked_at: Mapped[float | None] = mapped_column(Float)


class Attempt(Base):
    """Failed attempts of one kind by one subject (`address:1.2.3.4`, `account:alice`)."""

    __tablename__ = "attempts"
    subject: Mapped[str] = mapped_column(String(160), primary_key=True)
    count: Mapped[int] = mapped_column(default=0)
    since_at: Mapped[float] = mapped_column(Float)
    blocked_until: Mapped[float] = mapped_column(Float, default=0.0)


class Template(Base):
    __tablename__ = "templates"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    title: Mapped[str] = mapped_column(String(128))
    description: Mapped[str] = mapped_column(Text, default="")
    driver: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(String(512))
    """Proxmox VE: VMID of the template. Local QEMU: path of the image."""
    options: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    """For the driver: `node`, `storage`, `full` (clone), `bridge`, `pool`, `kernel`..."""
    cores: Mapped[int]
    cores_max: Mapped[int]
    memory_mib: Mapped[int]
    memory_mib_max: Mapped[int]
    disk_gib: Mapped[int]
    disk_gib_max: Mapped[int]
    directories: Mapped[list[str]] = mapped_column(JSON)
    """Absolute paths that are saved, such as ["/home"]."""
    excludes: Mapped[list[str]] = mapped_column(JSON, default=list)
    login_user: Mapped[str] = mapped_column(String(32), default="user")
    seed: Mapped[str] = mapped_column(String(16), default="cloud-init")
    """`cloud-init`, or `agent`: the agent is in the template and reads the seed itself."""
    groups: Mapped[list[str]] = mapped_column(JSON, default=list)
    """Ids of the groups that may use it; empty: everybody."""
    enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[float] = mapped_column(Float)
    checked_at: Mapped[float | None] = mapped_column(Float)
    findings: Mapped[list[dict[str, str]]] = mapped_column(JSON, default=list)
    """Of the last check: `severity` (`error`, `warning`, `ok`), `message`, `hint`."""


class Environment(Base):
    __tablename__ = "environments"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(NAME)
    template_id: Mapped[str] = mapped_column(ForeignKey("templates.id"))
    state: Mapped[str] = mapped_column(String(16), index=True)
    failed_step: Mapped[str | None] = mapped_column(String(16))
    failed_reason: Mapped[str | None] = mapped_column(Text)
    driver: Mapped[str] = mapped_column(String(32))
    node: Mapped[str | None] = mapped_column(String(64))
    vmid: Mapped[int | None]
    machine: Mapped[str | None] = mapped_column(String(128))
    """The driver's name for it, e.g. `pve1/10023`."""
    machine_uuid: Mapped[str | None] = mapped_column(String(36))
    """SMBIOS UUID; drawn anew for each machine."""
    address: Mapped[str | None] = mapped_column(String(64))
    running: Mapped[bool] = mapped_column(default=False)
    """As the last look at the inventory, or the last step, has it."""
    cores: Mapped[int]
    memory_mib: Mapped[int]
    disk_gib: Mapped[int]
    directories: Mapped[list[str]] = mapped_column(JSON)
    generation: Mapped[int] = mapped_column(default=0)
    """Of the machine that may commit; the head in the bucket has the last word."""
    source_environment_id: Mapped[str | None] = mapped_column(ID)
    source_snapshot: Mapped[int | None]
    """What the first RESTORE brings, where it was made from another environment's backup."""
    restore_snapshot: Mapped[int | None]
    """What the next RESTORE brings; null: the newest."""
    frozen: Mapped[bool] = mapped_column(default=False)
    """Nobody but an operator starts it."""
    idle_stop_s: Mapped[int | None]
    schedule: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    """`start` and `stop`: "MON-FRI 08:00" in `timezone`."""
    expires_at: Mapped[float | None] = mapped_column(Float)
    """It is stopped then, and deleted after the grace; never purged before the home's days."""
    last_activity_at: Mapped[float | None] = mapped_column(Float)
    """Of a person: a login in the guest, a console, a verb."""
    created_at: Mapped[float] = mapped_column(Float)
    ready_at: Mapped[float | None] = mapped_column(Float)
    stopped_at: Mapped[float | None] = mapped_column(Float)
    deleted_at: Mapped[float | None] = mapped_column(Float)
    delete_after: Mapped[float | None] = mapped_column(Float)
    """When a deleted environment's home is purged."""
    last_backup_at: Mapped[float | None] = mapped_column(Float)
    """When the home in the bucket last was known to be that of the machine: a commit, or a heartbeat that found no change."""
    last_backup_number: Mapped[int | None]
    last_backup_error: Mapped[str | None] = mapped_column(Text)
    last_attempt_at: Mapped[float | None] = mapped_column(Float)
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    finding: Mapped[str | None] = mapped_column(Text)
    """What the reconciler found: missing, drift, two machines."""
    __table_args__ = (
        Index(
            "one_name_an_owner",
            "owner_id",
            "name",
            unique=True,
            sqlite_where=text("state NOT IN ('deleted', 'purged')"),
            postgresql_where=text("state NOT IN ('deleted', 'purged')"),
        ),
    )


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), default=JobState.QUEUED)
    step: Mapped[str | None] = mapped_column(String(16))
    steps: Mapped[list[str]] = mapped_column(JSON)
    attempt: Mapped[int] = mapped_column(default=1)
    """How often a person or the runner has begun it."""
    parameters: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    """E.g. `force`, `accept_loss`, `disk_gib`."""
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float] = mapped_column(Float, default=0.0)
    not_before: Mapped[float] = mapped_column(Float, default=0.0)
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    error: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(String(64))
    """Name of the user, or `schedule`, `idle`, `expiry`, `reconciler`."""
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    __table_args__ = (
        Index(
            "one_job_an_environment",
            "environment_id",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
    )


class JobStep(Base):
    """One step of one attempt. `task` is written before anything waits for it, so that a restart finds it again."""

    __tablename__ = "job_steps"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    """`running`, `done` or `failed`."""
    task: Mapped[str | None] = mapped_column(String(256))
    """The hypervisor's name for it (a UPID)."""
    detail: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    started_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)


class JobLine(Base):
    """The log of an environment, a line each; ids only go up, so that a browser resumes after the last it has."""

    __tablename__ = "job_lines"
    id: Mapped[int] = mapped_column(COUNTER, primary_key=True, autoincrement=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str | None] = mapped_column(ID, index=True)
    at: Mapped[float] = mapped_column(Float)
    level: Mapped[str] = mapped_column(String(8), default="info")
    text: Mapped[str] = mapped_column(Text)
    # Old lines are deleted; without it SQLite would give the number of the last one again.
    __table_args__ = ({"sqlite_autoincrement": True},)


class Vmid(Base):
    """A number of our range. Inserted before the hypervisor is asked, so that two jobs never ask for the same."""

    __tablename__ = "vmids"
    vmid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    environment_id: Mapped[str | None] = mapped_column(ID, index=True)
    state: Mapped[str] = mapped_column(String(16))
    """`claimed`, or `foreign`: somebody else has a machine of that number."""
    at: Mapped[float] = mapped_column(Float)


class Guest(Base):
    """The identity of one machine: a generation of an environment. One-time seed token, then a public key."""

    __tablename__ = "guests"
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"), primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    machine_uuid: Mapped[str] = mapped_column(String(36))
    seed_hash: Mapped[str | None] = mapped_column(HASH, unique=True)
    seed_expires_at: Mapped[float] = mapped_column(Float)
    seed_address: Mapped[str | None] = mapped_column(String(64))
    """Who fetched the seed first: enrolment comes from there."""
    public_key: Mapped[str | None] = mapped_column(String(64))
    """Ed25519, hexadecimal."""
    enrolled_at: Mapped[float | None] = mapped_column(Float)
    restored_at: Mapped[float | None] = mapped_column(Float)
    """Before this no commit of this machine is taken: an empty home must not replace a full one."""
    revoked_at: Mapped[float | None] = mapped_column(Float)
    seen_at: Mapped[float | None] = mapped_column(Float)
    agent_version: Mapped[str] = mapped_column(String(32), default="")
    status: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    """What the agent said last: phase, progress, logins, load, disk."""


class Nonce(Base):
    """Signed requests that were taken; each counts once."""

    __tablename__ = "nonces"
    value: Mapped[str] = mapped_column(String(96), primary_key=True)
    expires_at: Mapped[float] = mapped_column(Float, index=True)


class GuestCommand(Base):
    """What the console asks of an agent: `backup`, `restore`, `status`. Answered once."""

    __tablename__ = "guest_commands"
    id: Mapped[str] = mapped_column(ID, primary_key=True)
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"), index=True)
    generation: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    parameters: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float] = mapped_column(Float)
    taken_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    ok: Mapped[bool | None]
    answer: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)


class Backup(Base):
    """A snapshot of a home. A cache of what the bucket holds (`homes`), made anew from it; pins are truth there too."""

    __tablename__ = "backups"
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float] = mapped_column(Float)
    generation: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    """`timer`, `asked`, `final` or `safety` (before a restore in place)."""
    files: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    added: Mapped[int]
    changed: Mapped[int]
    removed: Mapped[int]
    new_bytes: Mapped[int] = mapped_column(BigInteger)
    """Stored for it."""
    fuzzy: Mapped[int]
    """Files that changed while they were read; their last good content was kept."""
    pinned: Mapped[bool] = mapped_column(default=False)
    note: Mapped[str] = mapped_column(String(200), default="")
    alert: Mapped[str | None] = mapped_column(Text)
    """What the mass-change guard said."""


class AuditRow(Base):
    """One per change, refused ones too. Also a record of the ledger, where one is configured."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(COUNTER, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float, index=True)
    actor: Mapped[str] = mapped_column(String(64))
    via: Mapped[str] = mapped_column(String(16))
    """`browser`, `api`, `cli`, `guest` or `console` (the schedule, the reconciler)."""
    address: Mapped[str] = mapped_column(String(64), default="")
    verb: Mapped[str] = mapped_column(String(48))
    target: Mapped[str] = mapped_column(String(160), default="")
    environment_id: Mapped[str | None] = mapped_column(ID, index=True)
    outcome: Mapped[str] = mapped_column(String(16))
    """`ok`, or the `code` of the error."""
    detail: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    __table_args__ = ({"sqlite_autoincrement": True},)


class Ticket(Base):
    """Opens one console connection, once, within a minute."""

    __tablename__ = "tickets"
    token_hash: Mapped[str] = mapped_column(HASH, primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(16))
    """`vnc` or `terminal`."""
    expires_at: Mapped[float] = mapped_column(Float)


class Orphan(Base):
    """A machine with our mark that no environment has. Destroyed after the grace, or adopted, or left alone."""

    __tablename__ = "orphans"
    machine: Mapped[str] = mapped_column(String(128), primary_key=True)
    driver: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(128), default="")
    tag: Mapped[str] = mapped_column(String(64), default="")
    first_seen_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float)
    kept: Mapped[bool] = mapped_column(default=False)
    """A person said: leave it alone."""


class Node(Base):
    """What the last look said of a node; a cache for pages."""

    __tablename__ = "nodes"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    driver: Mapped[str] = mapped_column(String(32), primary_key=True)
    online: Mapped[bool]
    cores: Mapped[int]
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_used_bytes: Mapped[int] = mapped_column(BigInteger)
    storages: Mapped[list[dict[str, object]]] = mapped_column(JSON, default=list)
    """`name`, `total_bytes`, `used_bytes`."""
    at: Mapped[float] = mapped_column(Float)


class Setting(Base):
    """What an admin set in the console, over the configuration file's: retention, idle stop, grace."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[object] = mapped_column(JSON)


TERMINAL_STATES = (EnvironmentState.DELETED, EnvironmentState.PURGED)
"""A name may be used again from here on."""
