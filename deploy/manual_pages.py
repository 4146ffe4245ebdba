"""Manual pages in man(7) roff: section 1 for every command, 5 for the configuration, 7 for the whole.

One rule: pure; what goes in are the commands and tables of the code, and what comes out is text. `roff` and `prose` are
the only places where text of others becomes roff, and nothing of it can be taken for a request there.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from command_tree import Command, Parameter

from s3core.exit_codes import MEANINGS, ExitCode, shown_name
from s3core.settings import DEFAULT_PATH, TABLES
from s3core.settings_table import settings_table

_SPECIAL: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
_CODE: Final = re.compile(r"`([^`]+)`")
_WIDTH: Final = 72
ENVIRONMENT: Final[Mapping[str, str]] = {
    "BUCKETWORKS_CONFIG": f"The configuration file, where `--config` names none [{DEFAULT_PATH}].",
    "BUCKETWORKS_NAME_ACCESS_KEY, BUCKETWORKS_NAME_SECRET_KEY": "Keys of the endpoint NAME (in capitals, with `_` for"
    " anything but letters and digits), where its `credentials` is `environment`.",
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN": "Keys of every endpoint that has none of its own.",
    "AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE": "Where `profile:NAME` is looked for.",
    "CREDENTIALS_DIRECTORY": "Where systemd puts what `systemd:NAME` reads.",
    "BUCKETWORKS_DEBUG": "Set to anything: errors show where in the program they came from.",
    "BUCKETWORKS_SPENDING_DIR": "The folder in which requests and bytes are counted, by month; `off`: nowhere.",
    "NO_COLOR": "Set to anything: no colours.",
}
PVE_ENVIRONMENT: Final[Mapping[str, str]] = {
    "S3_ENDPOINT, S3_BUCKET, S3_REGION, S3_PREFIX, S3_ACCESS_KEY, S3_SECRET_KEY": "One storage, where there is no storage.cfg.",
    "PVE_S3_LOG_LEVEL": "What is logged: debug, info, warning or error [info].",
    "PVE_S3_DEBUG": "1: as PVE_S3_LOG_LEVEL=debug, and errors show where they came from.",
    "BUCKETWORKS_PVE_ROOT": "Stands for / of the node, for drills.",
}
FILES: Final[Mapping[str, str]] = {
    str(DEFAULT_PATH): "Endpoints, volumes, mirrors, ledgers: see bucketworks.toml(5).",
    "/var/lib/bucketworks": "What this host keeps: journals, maps and caches of volumes, bases of mirrors, ledgers.",
}
PVE_FILES: Final[Mapping[str, str]] = {
    "/etc/pve/storage.cfg": "Storages of the types bucketfiles and bucketdisks.",
    "/etc/pve/priv/storage": "Their keys.",
    "/etc/bucketworks/pve-credentials.ini": "Keys and bucket of one storage, where there is no storage.cfg.",
}


@dataclass(frozen=True, slots=True)
class Issue:
    """What the head and foot of every page say."""

    version: str
    epoch: int
    """Unix seconds, UTC."""

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.epoch, UTC).strftime("%Y-%m-%d")


def pages(tree: Sequence[Command], issue: Issue) -> dict[str, str]:
    """Every page by its file's name, such as `s3block-serve.1`."""
    made = {f"{page_name(one.path)}.1": _command_page(one, top, tree, issue) for top in tree for one in top.walk()}
    made["bucketworks.toml.5"] = _configuration_page(issue)
    made["bucketworks.7"] = _overview_page(tree, issue)
    return made


def page_name(path: str) -> str:
    """`s3block snapshot create` -> `s3block-snapshot-create`."""
    return path.replace(" ", "-")


def roff(text: str) -> str:
    """`text` as roff that prints exactly it, within a line."""
    shown = "".join(_SPECIAL.get(c, c if c.isascii() and c.isprintable() else _other(c)) for c in text)
    return rf"\&{shown}" if shown.startswith(".") else shown


def _other(character: str) -> str:
    return " " if character.isspace() else rf"\[u{ord(character):04X}]"


def _inline(text: str) -> str:
    """A sentence in which `code` is bold. Hyphens between words stay hyphens."""
    parts = []
    for at, part in enumerate(_CODE.split(text)):
        shown = roff(part)
        if at % 2:
            parts.append(rf"\fB{shown}\fP")
        else:
            parts.append(re.sub(r"(?<=[A-Za-z])\\-(?=[A-Za-z])", "-", shown))
    return "".join(parts)


def prose(text: str) -> Iterator[str]:
    """Paragraphs as roff lines, with `.PP` between them. No line begins with what roff takes for a request."""
    for at, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if at:
            yield ".PP"
        yield from _filled(paragraph)


def _filled(text: str) -> Iterator[str]:
    # Wrapped before it becomes roff, so that no escape is cut; code that is wrapped stays bold across the line's end.
    flat = " ".join(text.split())
    marked = _CODE.sub(lambda found: f"`{found[1].replace(' ', chr(0xE000))}`", flat)
    for line in textwrap.wrap(marked, _WIDTH, break_long_words=False, break_on_hyphens=False):
        yield _protected(_inline(line.replace("\ue000", " ")))


def _protected(line: str) -> str:
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _head(name: str, section: int, issue: Issue) -> Iterator[str]:
    yield r".\" Made by deploy/manuals.py from the program itself."
    yield f'.TH "{roff(name.upper())}" {section} "{issue.date}" "Bucketworks {roff(issue.version)}" "Bucketworks"'
    yield ".nh"
    yield ".ad l"


def _command_page(one: Command, top: Command, tree: Sequence[Command], issue: Issue) -> str:
    name = page_name(one.path)
    lines = [*_head(name, 1, issue), ".SH NAME"]
    lines.append(f"{roff(name)} \\- {_inline(one.summary)}")
    lines += [".SH SYNOPSIS", *_synopsis(one), ".SH DESCRIPTION", *prose(one.help)]
    if one.commands:
        lines.append(".SH COMMANDS")
        for inner in one.commands:
            lines += [".TP", f".BR {roff(page_name(inner.path))} (1)", *_filled(f"{inner.summary}.")]
    if one.arguments:
        lines.append(".SH ARGUMENTS")
        for argument in one.arguments:
            lines += [".TP", rf"\fI{roff(argument.value)}\fP", *_about(argument)]
    lines.append(".SH OPTIONS")
    for option in one.options:
        lines += [".TP", _flags(option), *_about(option)]
    lines += [".SH EXIT STATUS", "One table for all commands; what to do is in"]
    lines += [".BR bucketworks (7).", *_exit_codes(with_cure=False)]
    is_pve = top.path.startswith("pve-s3")
    lines += [".SH ENVIRONMENT", *_named({**ENVIRONMENT, **(PVE_ENVIRONMENT if is_pve else {})})]
    lines += [".SH FILES", *_named({**FILES, **(PVE_FILES if is_pve else {})})]
    return _page(lines, _related(one, top, tree))


def _synopsis(one: Command) -> Iterator[str]:
    words = [rf"\fB{roff(one.path)}\fP"]
    if one.commands:
        yield rf"{words[0]} \fICOMMAND\fP \&..."
        return
    for option in one.options:
        if option.required:
            words.append(_flag(option.flags[0], option.value))
    if any(not option.required for option in one.options):
        words.append(r"[\fIOPTION\fP]...")
    for argument in one.arguments:
        shown = rf"\fI{roff(argument.value)}\fP" + ("..." if argument.repeated else "")
        words.append(shown if argument.required else f"[{shown}]")
    yield " ".join(words)


def _flag(flag: str, value: str) -> str:
    return rf"\fB{roff(flag)}\fP" + (rf" \fI{roff(value)}\fP" if value else "")


def _flags(option: Parameter) -> str:
    return ", ".join(_flag(flag, option.value) for flag in option.flags)


def _about(parameter: Parameter) -> Iterator[str]:
    text = parameter.help
    if parameter.default:
        text = f"{text} [`{parameter.default}`]".strip()
    yield from _filled(_sentence(text) or "As its name says.")


def _exit_codes(*, with_cure: bool) -> Iterator[str]:
    for code in ExitCode:
        meaning, cure = MEANINGS[code]
        text = f"{meaning}; what to do: {cure}." if with_cure else f"{meaning}."
        yield from (".TP", rf"\fB{code.value}\fP {roff(shown_name(code))}", *_filled(_sentence(text)))


def _sentence(text: str) -> str:
    """`text` with a capital and a full stop, where it has neither; a name that it begins with stays as it is."""
    first = text.partition(" ")[0]
    begun = text[:1].upper() + text[1:] if re.fullmatch(r"[a-z]+[:,]?", first) else text
    return begun if not begun or begun[-1] in ".]):" else f"{begun}."


def _named(rows: Mapping[str, str]) -> Iterator[str]:
    for name, about in rows.items():
        yield from (".TP", rf"\fB{roff(name)}\fP", *_filled(about))


def _related(one: Command, top: Command, tree: Sequence[Command]) -> list[tuple[str, int]]:
    names = {page_name(inner.path) for inner in one.commands}
    if one is not top:
        names.add(top.path)
        parent = one.path.rpartition(" ")[0]
        siblings = next(group.commands for group in top.walk() if group.path == parent)
        names |= {page_name(parent)} | ({page_name(each.path) for each in siblings} if len(siblings) <= 12 else set())
    else:
        names |= {other.path for other in tree}
    names.discard(page_name(one.path))
    return [*((name, 1) for name in sorted(names)), ("bucketworks.toml", 5), ("bucketworks", 7)]


def _page(lines: Iterable[str], related: Sequence[tuple[str, int]]) -> str:
    shown = [*lines, ".SH SEE ALSO"]
    for at, (name, section) in enumerate(related):
        shown.append(f".BR {roff(name)} ({section}){',' if at + 1 < len(related) else ''}")
    return "\n".join(shown) + "\n"


def _configuration_page(issue: Issue) -> str:
    lines = [*_head("bucketworks.toml", 5, issue), ".SH NAME"]
    lines += [r"bucketworks.toml \- configuration of Bucketworks: endpoints, volumes, mirrors, ledgers, console"]
    lines += [".SH SYNOPSIS", rf"\fI{roff(str(DEFAULT_PATH))}\fP", ".SH DESCRIPTION"]
    lines += prose(
        f"Every command reads `{DEFAULT_PATH}`, or the file that `--config` or `BUCKETWORKS_CONFIG` names. It is TOML; a file"
        " that is not there counts as empty. A table or setting that nobody knows is an error that names the nearest one.\n\n"
        "Sizes are whole numbers or text: `10G`, `64MiB` (powers of 1024), `500MB` (powers of 1000). Durations are numbers"
        " (of seconds) or text: `5s`, `500ms`, `2min`, `1h`. Lists may be written as their only member. A file that holds a"
        " secret must have mode 0600, this one too if `secret_key` is in it."
    )
    for table, model in TABLES:
        about = (model.__doc__ or "").strip().removeprefix(f"`[{table}]`: ")
        lines += [f'.SH "{roff(f"[{table}]")}"', *prose(_sentence(about))]
        for row in settings_table():
            if row.table != table:
                continue
            facts = ", ".join(part for part in (row.type, row.unit) if part)
            default = "required" if row.default == "required" else f"default: {row.default}"
            lines += [".TP", rf"\fB{roff(row.name)}\fP ({_inline(facts)}; {_inline(default)})"]
            lines += _filled(_sentence(row.reason))
    lines += [".SH EXAMPLE", "A store, a volume in it, and a mirror of another bucket:", ".PP", ".in +4n", ".nf"]
    lines += [_protected(roff(line)) for line in _EXAMPLE.strip().splitlines()]
    lines += [".fi", ".in", ".SH FILES", *_named({**FILES, "/usr/share/doc/bucketworks": "A longer example."})]
    return _page(lines, [("bucketworks", 1), ("bucketworks", 7)])


_EXAMPLE: Final = """
[endpoint.main]
preset = "ceph"
url = "https://rgw.example.com"
credentials = "file:/etc/bucketworks/main.keys"

[volume.vm1]
url = "s3://main/disks/vm1"

[mirror.archive]
source = "s3://main/archive"
to = "s3://main/archive-mirror"
"""


def _overview_page(tree: Sequence[Command], issue: Issue) -> str:
    lines = [*_head("bucketworks", 7, issue), ".SH NAME"]
    lines += [
        r"bucketworks \- a bucket as a disk, a mirror, a ledger, a Proxmox VE storage and a home for users\(aq machines"
    ]
    lines += [".SH DESCRIPTION"]
    lines += prose(
        "Bucketworks is nine commands over one S3 core and one configuration file. Each of their commands has a page of its"
        " own: that of `s3block serve` is s3block-serve(1)."
    )
    lines.append(".SH COMMANDS")
    for top in tree:
        lines += [".TP", f".BR {roff(top.path)} (1)", *_filled(f"{top.summary}.")]
    lines.append(".SH PLACES IN A STORE")
    lines += _named(
        {
            "s3://ENDPOINT/BUCKET/PREFIX": "In a bucket; ENDPOINT is a name of the configuration: [endpoint.NAME].",
            "file:///DIRECTORY": "In a folder of this host: durable, with the same promises as a bucket.",
        }
    )
    lines += [".SH BEGINNING", "A disk in a bucket:", ".PP", ".in +4n", ".nf"]
    lines += [
        roff(line)
        for line in (
            "bucketworks endpoint create main --preset ceph --url https://rgw.example.com",
            "bucketworks doctor s3://main/disks",
            "s3block create s3://main/disks/vm1 --size 100G",
            "s3block serve s3://main/disks/vm1",
        )
    ]
    lines += [".fi", ".in", ".SH EXIT STATUS"]
    lines += prose(
        "One table for all commands. A code says who must act; the message on standard error says what happened, to what, and"
        " what to do. With `--json` it is one JSON object, `error`, with `code`, `name`, `message` and `hint`."
    )
    lines += [*_exit_codes(with_cure=True), ".SH ENVIRONMENT", *_named(ENVIRONMENT), ".SH FILES", *_named(FILES)]
    return _page(lines, [*((top.path, 1) for top in tree), ("bucketworks.toml", 5)])
