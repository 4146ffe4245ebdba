"""What somebody meets who installs the console by the documents, and who looks at it when something is wrong."""

import logging
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import typer.main

import envctl
from envctl import cli, serving
from envctl.web import assets
from s3core import console
from s3core.exit_codes import ExitCode, exit_code_of
from s3core.settings import parse_config
from tests.envctl.assembly.running import running_console, write_config

ROOT = Path(envctl.__file__).resolve().parent.parent
NAMED = re.compile(r"s3-envctl ((?:[a-z][a-z-]+ ?)+)")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = console.run(cli.app, "s3-envctl", arguments)
    said = capsys.readouterr()
    return int(code), said.out, said.err


def places() -> list[Path]:
    texts = [*ROOT.glob("docs/envctl*.md"), *ROOT.glob("docs/envctl/*.md"), ROOT / "docs/runbook/envctl.md"]
    code = [one for kind in ("*.py", "*.html") for one in (ROOT / "envctl").rglob(kind) if "vendor" not in one.parts]
    return texts + code


def named_in(text: str) -> list[str]:
    """In the code of documents and pages, and in hints and summaries of the program."""
    quoted = re.findall(r"`([^`\n]+)`|<code>([^<]+)</code>|\"([^\"\n]*)\"", text)
    lines = re.findall(r"^ *(s3-envctl [^\n]*)", text, flags=re.MULTILINE)
    return [one for group in quoted for one in group if one.startswith("s3-envctl ")] + lines


def test_every_command_that_is_named_somewhere_is_there() -> None:
    program: Any = typer.main.get_command(cli.app)
    seen = 0
    for path in places():
        for line in named_in(path.read_text(encoding="utf-8")):
            found = NAMED.match(line)
            if found is None:
                continue
            here, words = program, found[1].split()
            while words and hasattr(here, "commands"):
                assert words[0] in here.commands, f"{path.relative_to(ROOT)}: {line}"
                here = here.commands[words.pop(0)]
                seen += 1
            arguments = sum(one.param_type_name == "argument" for one in here.params)
            # Hints of the program may go on in words.
            assert path.suffix != ".md" or len(words) <= arguments, f"{path.relative_to(ROOT)}: {line}"
    assert seen > 100


def test_a_name_with_any_letter_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    with running_console(tmp_path) as here:
        here.add_user("root", "admin")
        monkeypatch.setenv("ENVCTL_URL", here.url)
        monkeypatch.setenv("ENVCTL_TOKEN", here.token("root"))
        for name in ("a?b", "a#b", "a%2Fb", "x y"):
            code, _, said = command(capsys, "env", "show", name)
            assert code == ExitCode.NOT_FOUND
            assert f"there is no environment '{name}'" in said
        code, shown, said = command(capsys, "user", "add", "--name", "alice")
        assert code == 0, said
        assert re.search(r"^created at +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]", shown, flags=re.MULTILINE), shown
        assert "id=" not in shown, "members of a member have lines of their own"


def test_questions_to_hypervisors_do_not_bury_the_log(tmp_path: Path) -> None:
    questions = logging.getLogger("httpx")
    before = questions.level
    questions.setLevel(logging.NOTSET)
    try:
        with running_console(tmp_path):
            assert questions.getEffectiveLevel() == logging.WARNING
    finally:
        questions.setLevel(before)


def test_pages_without_their_browser_code_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path)
    assert command(capsys, "init", "--config", str(config))[0] == 0
    monkeypatch.setattr(assets, "missing_files", lambda: ["htmx.org", "@novnc/novnc"])
    code, shown, _ = command(capsys, "doctor", "--part", "console", "--config", str(config))
    assert code == ExitCode.FINDING
    assert "htmx.org, @novnc/novnc" in shown
    assert "make assets" in shown
    monkeypatch.setattr(assets, "missing_files", list)
    assert "browser code" not in command(capsys, "doctor", "--part", "console", "--config", str(config))[1]


def test_a_port_that_is_taken_is_tried_again_by_the_service_manager() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = parse_config(f'[envctl]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n')
        with pytest.raises(serving.AddressUnavailable) as refused, serving.listen(config):
            pass
    assert exit_code_of(refused.value) == ExitCode.UNAVAILABLE
    unit = (ROOT / "deploy/systemd/s3-envctl.service").read_text(encoding="utf-8")
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", unit, flags=re.MULTILINE)
    assert prevented is not None
    assert str(int(ExitCode.UNAVAILABLE)) not in prevented[1].split()
