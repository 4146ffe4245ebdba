"""Who asks, and what the answer is made with.

One rule: a verb is a plain function `(context, caller, request) -> answer`. It checks rights itself, opens its own database
session, writes its audit row (refused too), and knows no HTTP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import TYPE_CHECKING, Literal

from envctl.fleet import Fleet
from envctl.identifiers import new_id
from s3core.clock import Clock
from s3core.settings import Config

if TYPE_CHECKING:
    from envctl.audit import Audit
    from envctl.database.access import Database
    from envctl.drivers.port import EnvDriver
    from envctl.homes.store import HomeStore
    from envctl.sealing import SecretBox
    from s3core.settings import EnvctlSettings

Role = Literal["user", "operator", "admin"]
Via = Literal["browser", "api", "cli", "guest", "console"]


@dataclass(frozen=True, slots=True)
class Caller:
    """`scopes`: what the token may do (`envctl.accounts.scopes`); None: everything its role may."""

    user_id: str
    name: str
    role: Role
    via: Via
    address: str = ""
    scopes: frozenset[str] | None = None
    login_hash: str = ""
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Context:
    """The console's parts. Everything that varies comes in here: clock, randomness, database, store, hypervisors."""

    settings: "EnvctlSettings"
    database: "Database"
    audit: "Audit"
    homes: "HomeStore"
    drivers: "Mapping[str, EnvDriver]"
    secrets: "SecretBox"
    clock: Clock
    wake: Callable[[], None] = lambda: None
    """Tell the runner that there is a job."""
    told: Callable[[str], None] = lambda environment_id: None
    """Tell who watches an environment that it changed."""
    random: Callable[[int], bytes] = field(default=token_bytes)
    fleet: Fleet = field(default_factory=lambda: Fleet(Config(), {}))
    """How hosts are; by default nothing is asked."""

    def now(self) -> float:
        return self.clock.time()

    def new_id(self) -> str:
        return new_id(self.clock.time(), self.random(10))
