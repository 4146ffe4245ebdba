"""What is asked and answered about templates. Values alone."""

from typing import Literal

from pydantic import Field

from envctl.verbs.verb import Answer, Request

Seed = Literal["cloud-init", "agent"]
OPTIONS_HELP = (
    "for the driver; Proxmox VE: full, storage, node, nodes, target, pool, snapshot; QEMU: docs/envctl/qemu.md"
)


class OneTemplate(Request):
    template: str = Field(max_length=64, description="name or id of a template")


class ListTemplates(Request):
    usable: bool = Field(default=False, description="only those that the caller may make an environment of")


class AddTemplate(Request):
    name: str = Field(description="a-z, 0-9 and '-'; it cannot be changed")
    title: str = Field(default="", max_length=128, description="as people see it; empty: the name")
    description: str = Field(default="", max_length=4096, description="what it is good for")
    driver: str = Field(description="name of a [envctl.driver.NAME]")
    source: str = Field(
        min_length=1, max_length=512, description="Proxmox VE: VMID of the template; QEMU: path of the image"
    )
    options: dict[str, str] = Field(default_factory=dict, description=OPTIONS_HELP)
    cores: int = Field(default=2, ge=1, le=1024, description="of a new environment")
    cores_max: int | None = Field(
        default=None, ge=1, le=1024, description="most that somebody may ask for; empty: as cores"
    )
    memory_mib: int = Field(default=2048, ge=64, le=1 << 24, description="of a new environment")
    memory_mib_max: int | None = Field(default=None, ge=64, le=1 << 24, description="most that somebody may ask for")
    disk_gib: int = Field(
        default=20, ge=1, le=1 << 16, description="of a new environment; grown to this from the template's"
    )
    disk_gib_max: int | None = Field(default=None, ge=1, le=1 << 16, description="most that somebody may ask for")
    directories: list[str] = Field(default_factory=lambda: ["/home"], description="absolute paths that are saved")
    excludes: list[str] = Field(default_factory=list, description="patterns that are left out, such as **/.cache")
    login_user: str = Field(default="user", description="account in the machine that the owner signs in with")
    seed: Seed = Field(
        default="cloud-init",
        description="who reads the seed at the first boot: cloud-init, or our agent in the template",
    )
    groups: list[str] = Field(default_factory=list, description="names of groups that may use it; none: everybody")
    check: bool = Field(
        default=True, description="look at it at the hypervisor; with an error it is added switched off"
    )


class UpdateTemplate(OneTemplate):
    """What is not named stays as it is. Environments that are there keep their machines; a reset takes what is then set."""

    title: str | None = Field(default=None, max_length=128, description="as people see it")
    description: str | None = Field(default=None, max_length=4096, description="what it is good for")
    source: str | None = Field(
        default=None, min_length=1, max_length=512, description="Proxmox VE: VMID; QEMU: path of the image"
    )
    options: dict[str, str] | None = Field(default=None, description=f"all of them anew: {OPTIONS_HELP}")
    cores: int | None = Field(default=None, ge=1, le=1024, description="of a new environment")
    cores_max: int | None = Field(default=None, ge=1, le=1024, description="most that somebody may ask for")
    memory_mib: int | None = Field(default=None, ge=64, le=1 << 24, description="of a new environment")
    memory_mib_max: int | None = Field(default=None, ge=64, le=1 << 24, description="most that somebody may ask for")
    disk_gib: int | None = Field(default=None, ge=1, le=1 << 16, description="of a new environment")
    disk_gib_max: int | None = Field(default=None, ge=1, le=1 << 16, description="most that somebody may ask for")
    directories: list[str] | None = Field(default=None, description="absolute paths that are saved in new environments")
    excludes: list[str] | None = Field(default=None, description="patterns that are left out")
    login_user: str | None = Field(default=None, description="account in the machine that the owner signs in with")
    seed: Seed | None = Field(default=None, description="who reads the seed at the first boot")
    groups: list[str] | None = Field(default=None, description="names of all groups that may use it; empty: everybody")
    enabled: bool | None = Field(
        default=None, description="off: nobody makes a new environment of it; those there are stay"
    )


class TemplateFinding(Answer):
    severity: Literal["ok", "warning", "error"]
    message: str
    hint: str = ""


class TemplateView(Answer):
    """`source`, `options`, `findings` and `environments` are for operators; others see them empty."""

    id: str
    name: str
    title: str
    description: str
    driver: str
    source: str
    options: dict[str, str]
    cores: int
    cores_max: int
    memory_mib: int
    memory_mib_max: int
    disk_gib: int
    disk_gib_max: int
    directories: list[str]
    excludes: list[str]
    login_user: str
    seed: str
    groups: list[str]
    """Names."""
    enabled: bool
    usable: bool
    """By who asks, now."""
    environments: int
    created_at: float
    checked_at: float | None
    findings: list[TemplateFinding]
    errors: int
    """Among the findings."""
