"""How a machine gets its identity: a token of one use → a key that never leaves the machine.

One rule: the key is durable before the console hears of it, so that a lost answer is asked for again with the same key.

A copy of the disk has the key as well, and the generation: the console could not tell the two apart, and each would save its
home over the other's. A hypervisor gives a copy another SMBIOS UUID; so the one at enrolment is kept, and another one fences.

The seed lies in /etc/envctl/seed.json where cloud-init has put it. Else the agent fetches it from the address in the SMBIOS
serial number (`ds=nocloud;...;s=ADDRESS`), and does what cloud-init would have done: host name, login user, keys for SSH.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import urllib.request
import uuid
from typing import Any, Final

from envctl.agent import ed25519
from envctl.agent.client import Console, Identity, World
from envctl.agent.errors import AgentError, Fenced, Unavailable
from envctl.agent.places import Places, read_json, replace

SERIAL: Final = "/sys/class/dmi/id/product_serial"
UUID: Final = "/sys/class/dmi/id/product_uuid"
_SERIAL: Final = re.compile(r"ds=nocloud(?:-net)?;(?:[^;]*;)*?s=([^;]+)")
_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def identity(places: Places, world: World, version: str) -> tuple[Identity, dict[str, Any], dict[str, Any] | None]:
    """(who this machine is, its seed, the console's answer if it has enrolled right now). AgentError if there is no seed;
    Fenced where this machine is a copy of the one that enrolled."""
    held = read_json(places.identity)
    seed = find_seed(places)
    if held is not None and (seed is None or held.get("token") == seed.get("token")):
        facts = held["seed"]
        if held.get("environment"):
            _refuse_copy(places, held)
            key = bytes.fromhex(held["key"])
            return Identity(held["environment"], int(held["generation"]), key, ed25519.public_key(key)), facts, None
    elif seed is None:
        raise AgentError(
            f"this machine has no seed: neither {places.seed} nor the SMBIOS serial number says where the console is"
        )
    else:
        held = {"token": seed["token"], "key": world.random(ed25519.SEED_BYTES).hex(), "seed": seed}
        replace(places.identity, json.dumps(held).encode("utf-8"))
    key = bytes.fromhex(held["key"])
    public = ed25519.public_key(key)
    seed = held["seed"]
    console = Console(seed["console"], world, ca_pem=str(seed.get("ca_pem") or ""))
    smbios = machine_uuid()
    answer = console.post(
        "/guest/v1/enrol",
        {"token": seed["token"], "uuid": smbios, "public_key": public.hex(), "agent_version": version},
    )
    held["environment"], held["generation"], held["uuid"] = answer["environment"], answer["generation"], smbios
    replace(places.identity, json.dumps(held).encode("utf-8"))
    return Identity(held["environment"], int(held["generation"]), key, public), seed, answer


def _refuse_copy(places: Places, held: dict[str, Any]) -> None:
    """Fenced where SMBIOS has another UUID than at enrolment. Without one, then or now, nothing is known and the machine goes
    on; one that enrolled when none was kept keeps the one it has."""
    now, enrolled = machine_uuid(), str(held.get("uuid") or "")
    if now and not enrolled:
        held["uuid"] = now
        replace(places.identity, json.dumps(held).encode("utf-8"))
    elif now and not _is_same(now, enrolled):
        raise Fenced(
            f"this machine is a copy: it enrolled with the SMBIOS UUID {enrolled}, and has {now} now. An admin who changed the"
            " UUID of the machine itself resets the environment in the console: what was last saved comes back"
        )


def _is_same(one: str, other: str) -> bool:
    """Kernels and firmware print the first half of the same UUID in either order of bytes."""
    try:
        first, second = uuid.UUID(one), uuid.UUID(other)
    except ValueError:
        return one.lower() == other.lower()
    return first in (second, uuid.UUID(bytes_le=second.bytes))


def find_seed(places: Places) -> dict[str, Any] | None:
    """From the file, else from the SMBIOS serial number; then the machine is set up as the seed says, and the file written."""
    seed = read_json(places.seed)
    if seed is not None:
        return seed
    if read_json(places.identity) is not None:
        return None
    address = _seed_address()
    if address is None:
        return None
    try:
        with urllib.request.urlopen(address + "agent.json", timeout=30) as response:
            seed = json.loads(response.read(1 << 20))
    except OSError as error:
        raise Unavailable(f"the seed cannot be fetched from the console: {error}") from error
    if not isinstance(seed, dict) or "console" not in seed:
        raise AgentError("the seed is not one of an agent")
    _set_up(seed)
    os.makedirs(places.etc, exist_ok=True)
    replace(places.seed, json.dumps(seed).encode("utf-8"))
    return seed


def _seed_address() -> str | None:
    try:
        with open(SERIAL, encoding="ascii", errors="replace") as file:
            serial = file.read().strip()
    except OSError:
        return None
    found = _SERIAL.fullmatch(serial)
    return found[1].rstrip("/") + "/" if found else None


def machine_uuid() -> str:
    """The SMBIOS UUID; empty on a machine that has none (tests)."""
    try:
        with open(UUID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _set_up(seed: dict[str, Any]) -> None:
    """Host name, login user, keys. May be repeated."""
    host = str(seed.get("hostname") or "")
    if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", host):
        with open("/etc/hostname", "w", encoding="ascii") as file:
            file.write(host + "\n")
        subprocess.run(["hostname", host], check=False)
    user = str(seed.get("login_user") or "")
    if not _NAME.fullmatch(user):
        return
    try:
        pwd.getpwnam(user)
    except KeyError:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", user], check=True)
        with open(f"/etc/sudoers.d/90-envctl-{user}", "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o440)
            file.write(f"{user} ALL=(ALL) NOPASSWD:ALL\n")
    if seed.get("ssh_keys"):
        authorize(user, [str(key) for key in seed["ssh_keys"]])


def authorize(user: str, keys: list[str]) -> None:
    """Put `keys` into the user's `authorized_keys`, beside those that are there. Written as that user, so that no link in their
    home leads root elsewhere."""
    entry = pwd.getpwnam(user)
    script = (
        'umask 077; mkdir -p "$HOME/.ssh"; touch "$HOME/.ssh/authorized_keys"; while IFS= read -r line; do '
        'grep -qxF -- "$line" "$HOME/.ssh/authorized_keys" || printf "%s\\n" "$line" >> "$HOME/.ssh/authorized_keys"; done'
    )

    def become() -> None:
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)

    subprocess.run(
        ["sh", "-c", script],
        input="".join(key.strip() + "\n" for key in keys).encode("utf-8"),
        env={"HOME": entry.pw_dir, "PATH": os.environ.get("PATH", "/usr/bin:/bin")},
        preexec_fn=become,
        check=True,
    )
