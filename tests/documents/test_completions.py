"""Completion in real shells: a line is typed, Tab is pressed, and what the shell offers is looked at."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_tree import Command, programs

from s3core.endpoint import PRESETS

TREE = programs()
PRESSED_S = 120.0
"""How long a shell may take on a busy machine."""
UNBRACKETED = "bind 'set enable-bracketed-paste off'"
CONFIG = """
[endpoint.main]
url = "https://rgw.example.com"
[endpoint.main.prices]
currency = "EUR"
[endpoint."far.away"]
url = "https://far.example.com"
[ volume.vm1 ]
url = "s3://main/disks/vm1"
[volume.vm2] # the other one
url = "s3://main/disks/vm2"
[mirror.archive]
source = "s3://main/a"
to = "s3://far.away/a"
[ledger.audit]
url = "s3://main/ledger"
[endpoint."$(id>/tmp/x)"]
[volume."a;id"]
"""

LINES: list[tuple[str, set[str]]] = [
    ("s3block sna", {"snapshot"}),
    ("s3block snapshot ", {"create", "list", "delete"}),
    ("s3block serve ", {"vm1", "vm2", "s3://main/", "s3://far.away/", "file:///"}),
    ("s3block list s3://m", {"s3://main/"}),
    ("s3block mount vm1 d", {"data"}),
    ("s3block serve --door ", {"portal", "lio"}),
    ("s3block serve --read-only v", {"vm1", "vm2"}),
    ("s3block import --format ", {"raw", "qcow2"}),
    ("s3block serve --door portal vm1 --flu", {"--flush"}),
    ("bucketworks endpoint delete ", {"main", "far.away"}),
    ("bucketworks endpoint create x --preset ", set(PRESETS)),
    ("bucketworks doctor s3://m", {"s3://main/"}),
    ("cowsync plan ", {"archive"}),
    ("s3integrity verify ", {"audit"}),
    ("s3-envctl env cre", {"create"}),
]


def shells(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name} (Debian: {name})")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "data").mkdir()
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    # No PATH: whatever completion starts would not be found, and be seen.
    return {
        "HOME": str(home),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "BUCKETWORKS_CONFIG": str(home / "config.toml"),
        "PATH": "/nowhere",
    }


def typed(words: list[str], variables: dict[str, str], keys: str, done: Callable[[], bool], directory: Path) -> str:
    """Start an interactive shell on a terminal, type `keys`, wait until `done`; what the terminal showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(directory)
        os.execve(words[0], words, variables)
    shown = b""
    try:
        os.write(terminal, keys.encode())
        end = time.monotonic() + PRESSED_S
        while not done():
            assert time.monotonic() < end, shown.decode(errors="replace")
            if select.select([terminal], [], [], 0.05)[0]:
                shown += os.read(terminal, 65536)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
    return shown.decode(errors="replace")


@shells("bash")
@pytest.mark.parametrize(("line", "offered"), LINES, ids=[line for line, _ in LINES])
def test_bash(line: str, offered: set[str], share: Path, home: Path) -> None:
    answer = home / "answer"
    source = share / "bash-completion/completions" / line.split()[0]
    # Escape-* puts every completion on the line, which then becomes the arguments of a printf.
    keys = f". {source}; {UNBRACKETED}\n{line}\x1b*\x01printf '%s\\n' \x05 >{answer}.new; echo >{answer}\n"
    words = [str(shutil.which("bash")), "--norc", "--noprofile", "-i"]
    shown = typed(words, environment(home), keys, answer.exists, home)
    found = (home / "answer.new").read_text(encoding="utf-8").split()
    before = line.split() if line.endswith(" ") else line.split()[:-1]
    assert found[: len(before)] == before, shown
    assert set(found[len(before) :]) >= offered, shown
    assert "command not found" not in shown
    assert len(found) == len(before) + len(offered) or line == "s3block snapshot "


@shells("bash")
def test_bash_completes_a_value_after_an_equals_sign_and_reads_the_file_that_is_named(share: Path, home: Path) -> None:
    (home / "other.toml").write_text('[volume.elsewhere]\nurl = "s3://a/b/c"', encoding="utf-8")
    for line, wanted in (
        ("s3block serve --door=l", "s3block serve --door=lio"),
        (f"s3block serve --config {home}/other.toml els", f"s3block serve --config {home}/other.toml elsewhere"),
        (f"s3block serve --config={home}/other.toml els", f"s3block serve --config={home}/other.toml elsewhere"),
        (f"s3block serve --config {home}/oth", f"s3block serve --config {home}/other.toml"),
    ):
        answer = home / "answer"
        source = share / "bash-completion/completions/s3block"
        keys = f". {source}; {UNBRACKETED}\n{line}\t\x01printf '%s ' \x05 >{answer}.new; echo >{answer}\n"
        typed([str(shutil.which("bash")), "--norc", "--noprofile", "-i"], environment(home), keys, answer.exists, home)
        assert (home / "answer.new").read_text(encoding="utf-8").split() == wanted.split()
        answer.unlink()


@shells("bash")
@pytest.mark.parametrize("top", TREE, ids=lambda top: top.path)
def test_bash_knows_every_command_and_option(top: Command, share: Path, home: Path) -> None:
    script = [f". {share}/bash-completion/completions/{top.path}"]
    for one in top.walk():
        for word in ("", "-"):
            # As readline calls it.
            script.append(
                f"COMP_LINE='{one.path} {word}'; COMP_WORDS=({one.path} '{word}'); COMP_CWORD={len(one.path.split())}"
            )
            script.append(f'_{top.path.replace("-", "_")}; echo "${{COMPREPLY[*]}}"')
    done = subprocess.run(
        [str(shutil.which("bash")), "--norc", "-c", "\n".join(script)],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    answers = iter(done.stdout.splitlines())
    for one in top.walk():
        offered, options = next(answers).split(), next(answers).split()
        assert options == [flag for option in one.options for flag in option.flags], one.path
        if one.commands:
            assert offered == [inner.path.split()[-1] for inner in one.commands], one.path


@shells("zsh")
@pytest.mark.parametrize(("line", "offered"), LINES, ids=[line for line, _ in LINES])
def test_zsh(line: str, offered: set[str], share: Path, home: Path) -> None:
    answer = home / "answer"
    # What is added to the list of matches is written down on its way.
    (home / "capture").write_text(
        f"""
        fpath=({share}/zsh/vendor-completions $fpath)
        autoload -U compinit && compinit -u -D
        unsetopt beep
        LISTMAX=10000
        compadd() {{
            local -a hits
            if [[ ${{@[1,(i)(-|--)]}} != *-(O|A|D)\\ * ]]; then
                builtin compadd -A hits "$@"
                print -rl -- $hits >>{answer}.new
            fi
            builtin compadd "$@"
        }}
        told() {{
            zle complete-word
            # The only match goes on the line and is not always told to the list.
            [[ -e {answer}.new ]] || print -r -- "${{${{(z)BUFFER}}[-1]}}" >{answer}.new
            print >{answer}
        }}
        zle -N told
        bindkey '^I' told
        """,
        encoding="utf-8",
    )
    words = [str(shutil.which("zsh")), "-f", "-i"]
    keys = f"source {home}/capture\n{line}\t"
    shown = typed(words, environment(home), keys, answer.exists, home)
    found = set((home / "answer.new").read_text(encoding="utf-8").split())
    assert found >= offered, shown
    assert found == offered or line == "s3block snapshot ", shown


@shells("fish")
@pytest.mark.parametrize(("line", "offered"), LINES, ids=[line for line, _ in LINES])
def test_fish(line: str, offered: set[str], share: Path, home: Path) -> None:
    source = share / f"fish/vendor_completions.d/{line.split()[0]}.fish"
    words = [str(shutil.which("fish")), "--no-config", "-c", f"source {source}; complete -C '{line}'"]
    done = subprocess.run(words, env=environment(home), cwd=home, capture_output=True, text=True, check=True)
    # It shows which of the names are folders; the others tell so in colours.
    found = {row.split("\t")[0].rstrip("/") for row in done.stdout.splitlines()}
    wanted = {name.rstrip("/") for name in offered}
    assert found >= wanted, done.stderr
    assert found == wanted or line == "s3block snapshot "
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_file_can_be_read_by_its_shell(shell: str, share: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"needs {shell} (Debian: {shell})")
    folder = {
        "bash": "bash-completion/completions",
        "zsh": "zsh/vendor-completions",
        "fish": "fish/vendor_completions.d",
    }[shell]
    found = sorted((share / folder).iterdir())
    assert len(found) == len(TREE)
    for path in found:
        done = subprocess.run([program, "-n", str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert not re.search(r"@[A-Z]+@", path.read_text(encoding="utf-8")), "every mark is filled"


def test_what_is_offered_belongs_to_no_shell(share: Path) -> None:
    """Summaries and help go between quotes: none of them ends the quoting."""
    text = (share / "zsh/vendor-completions/_s3-envctl").read_text(encoding="utf-8")
    assert "the template'\"'\"'s" in text
