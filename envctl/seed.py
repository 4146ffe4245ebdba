"""What a new machine is told at its first boot, as documents of cloud-init's NoCloud and as JSON for the agent. Pure.

One rule: every word in these documents comes from people (host names, keys, certificates), so each is one quoted scalar in
which nothing but printable ASCII stands as itself. A document never holds a key of the bucket: the token in it lets one machine
enrol, once, for ten minutes.

With cloud-init the order of a first boot is: `bootcmd` fetches the agent, compares its SHA-256, installs its units and queues
the restore; `users-groups` makes the login user; then the restore runs, and only after it `systemd-user-sessions.service` lets
people in. `manual_cache_clean` keeps a machine from taking itself for a new instance at its next boot, when the seed's address
no longer answers.

Formats: cloud-init "NoCloud" and "cloud-config"; YAML 1.1, 5.7 (escapes of a double-quoted scalar).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

AGENT_FILE: Final = "/usr/local/lib/envctl/envctl-agent.pyz"
"""Where the agent lies in a guest."""
SEED_FILE: Final = "/etc/envctl/seed.json"
"""What `agent_json` gives, in a guest that cloud-init has set up. Mode 0600. An agent that finds none asks at the address that
the machine's SMBIOS serial number holds."""
SERIAL_PREFIX: Final = "ds=nocloud;dsmode=net;s="
"""How that serial number begins; the address, with a slash at its end, follows. Without `dsmode` the cloud-init of Debian 12
(22.4) takes any `ds=nocloud` for local, finds the seed over the network, and then does nothing with it."""

_LOGIN_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_BOOTSTRAP: Final = """\
import hashlib, http.client, json, os, ssl, subprocess, sys, time, urllib.request
text, place, seed_file = sys.argv[1:]
done = seed_file + ".done"
if os.path.exists(done) and open(done).read() == text:
    sys.exit(0)
seed = json.loads(text)
trust = ssl.create_default_context()
if seed.get("ca_pem"):
    trust.load_verify_locations(cadata=seed["ca_pem"])
def put(name, content, mode):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    os.replace(name + ".new", name)
put(seed_file, text.encode(), 0o600)
url = seed["console"] + "/guest/v1/agent.pyz"
for again in range(60):
    try:
        agent = urllib.request.urlopen(url, timeout=30, context=trust).read()
        break
    except (OSError, http.client.HTTPException) as error:
        print("envctl:", url, error, file=sys.stderr)
        time.sleep(5)
else:
    sys.exit("envctl: the agent cannot be fetched; the console has to be reachable from this machine")
if hashlib.sha256(agent).hexdigest() != seed["agent_sha256"]:
    sys.exit("envctl: what " + url + " gave is not the agent that the seed names; nothing was installed")
put(place, agent, 0o755)
status = subprocess.call([sys.executable, place, "install"])
if status == 0:
    put(done, text.encode(), 0o600)
sys.exit(status)
"""
"""Runs in any guest with Python 3.9, at each boot (`bootcmd`), and does nothing once it has succeeded for this seed. A kill
anywhere leaves whole files and no mark, so the next boot does it again."""


@dataclass(frozen=True, slots=True)
class SeedFacts:
    """What a seed says. ValueError where a word of it could not be what it stands for."""

    console: str
    """Address of the console as the guest reaches it, `https://...`, without a slash at the end."""
    token: str
    environment: str
    generation: int
    hostname: str
    login_user: str
    agent_sha256: str
    """Of `GET /guest/v1/agent.pyz`, hexadecimal."""
    ssh_keys: Sequence[str] = ()
    """Lines of `authorized_keys`."""
    ca_pem: str = ""
    """Authorities for the console's certificate beside the guest's own; empty: its own alone."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.console)
        if parts.scheme not in ("http", "https") or not parts.hostname or self.console.endswith("/"):
            raise ValueError(f"{self.console!r} is not the address of a console: https://HOST[:PORT]")
        if not re.fullmatch(r"[!-~]+", self.console):
            raise ValueError(f"{self.console!r} holds what an address cannot hold")
        for pattern, text, what in (
            (_TOKEN, self.token, "token"),
            (_TOKEN, self.environment, "environment"),
            (_HOST_NAME, self.hostname, "host name"),
            (_LOGIN_USER, self.login_user, "login name"),
            (_SHA256, self.agent_sha256, "SHA-256"),
        ):
            if not pattern.fullmatch(text):
                raise ValueError(f"{text!r} is not a {what}")
        for key in self.ssh_keys:
            if "\n" in key or "\r" in key or not key.strip():
                raise ValueError("a key for SSH is one line")


def agent_json(seed: SeedFacts) -> str:
    """For an agent that is in the template, or that `user_data` has installed."""
    facts: dict[str, object] = {
        "console": seed.console,
        "token": seed.token,
        "environment": seed.environment,
        "generation": seed.generation,
        "hostname": seed.hostname,
        "login_user": seed.login_user,
        "ssh_keys": list(seed.ssh_keys),
        "agent_sha256": seed.agent_sha256,
    }
    if seed.ca_pem:
        facts["ca_pem"] = seed.ca_pem
    return json.dumps(facts)


def meta_data(seed: SeedFacts) -> str:
    """A machine is an instance of its own: a rebuilt one goes through its first boot again."""
    return f"instance-id: {quoted(f'{seed.environment}.{seed.generation}')}\nlocal-hostname: {quoted(seed.hostname)}\n"


def user_data(seed: SeedFacts) -> str:
    """cloud-config. The login user may become root without a password: the machine is theirs, and has no password."""
    lines = [
        "#cloud-config",
        f"hostname: {quoted(seed.hostname)}",
        "manage_etc_hosts: true",
        "ssh_pwauth: false",
        "users:",
        f"  - name: {quoted(seed.login_user)}",
        '    shell: "/bin/bash"',
        "    lock_passwd: true",
        '    sudo: "ALL=(ALL) NOPASSWD:ALL"',
    ]
    if seed.ssh_keys:
        lines.append("    ssh_authorized_keys:")
        lines += [f"      - {quoted(key)}" for key in seed.ssh_keys]
    command = ("-c", _BOOTSTRAP, agent_json(seed), AGENT_FILE, SEED_FILE)
    lines += ["bootcmd:", '  - - "python3"', *(f"    - {quoted(word)}" for word in command)]
    if seed.ca_pem:
        lines += ["ca_certs:", "  trusted:", f"    - {quoted(seed.ca_pem)}"]
    # In a file, because cloud-init decides whether to look for a seed before it reads these data.
    lines += [
        "write_files:",
        '  - path: "/etc/cloud/cloud.cfg.d/99-envctl.cfg"',
        '    permissions: "0644"',
        f"    content: {quoted('manual_cache_clean: true' + chr(10))}",
    ]
    return "\n".join(lines) + "\n"


def vendor_data(seed: SeedFacts) -> str:
    """Nothing: it is asked for, and an answer of 404 makes some versions of cloud-init warn."""
    return "#cloud-config\n{}\n"


def quoted(text: str) -> str:
    """A double-quoted YAML scalar of ASCII on one line. Lone surrogates, which YAML cannot say, are a ValueError."""
    pieces = ['"']
    for character in text:
        number = ord(character)
        if 0xD800 <= number <= 0xDFFF:
            raise ValueError("text with half of a surrogate pair")
        if character in '"\\':
            pieces.append("\\" + character)
        elif character == "\n":
            pieces.append("\\n")
        elif 0x20 <= number < 0x7F:
            pieces.append(character)
        elif number < 0x100:
            pieces.append(f"\\x{number:02x}")
        elif number < 0x10000:
            pieces.append(f"\\u{number:04x}")
        else:
            pieces.append(f"\\U{number:08x}")
    return "".join([*pieces, '"'])
