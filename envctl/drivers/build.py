"""Hypervisors from the configuration: `[envctl.driver.NAME]` to drivers by name.

Nothing is opened here: a token file that is not there yet, or a cluster that is away, is found by the first call and by
`doctor`, and keeps nobody from the console.
"""

from typing import TYPE_CHECKING

from envctl.drivers.port import EnvDriver
from envctl.drivers.pve.driver import PveDriver
from envctl.drivers.qemu.driver import QemuDriver

if TYPE_CHECKING:
    from s3core.settings import EnvctlDriverSettings, EnvctlSettings


def build_drivers(settings: "EnvctlSettings") -> dict[str, EnvDriver]:
    """All that are configured. ConfigError: a setting that cannot be."""
    return {name: build_driver(name, driver) for name, driver in settings.driver.items()}


def build_driver(name: str, settings: "EnvctlDriverSettings") -> EnvDriver:
    return QemuDriver(name, settings) if settings.kind == "qemu" else PveDriver(name, settings)
