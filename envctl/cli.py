"""The `s3-envctl` command: the console itself (serve, init, doctor, ...), and every verb of it over the REST API.

One rule: this is the outermost rim: commands are put together here. Those of `host_commands` work on this host's configuration
and files; all others ask a console, wherever it is, and may no more than the token that they send.
"""

from typing import NoReturn

from envctl import host_commands
from envctl.errors import EnvctlError
from envctl.verb_commands import add_verbs
from envctl.verbs.table import VERBS
from s3core.console import new_program, run_and_exit
from s3core.exit_codes import ExitCode, register

# What the console answers with a word that this version does not know is a refusal, not a fault of this program.
register(EnvctlError, ExitCode.REFUSED)

ABOUT = "A machine for every user, whose home is kept in a bucket and survives the machine."

app = new_program("s3-envctl", ABOUT)
app.command("serve")(host_commands.serve)
app.command("init")(host_commands.init)
app.command("migrate")(host_commands.migrate)
app.command("doctor")(host_commands.doctor)
app.command("demo")(host_commands.demo)
app.command("agent-file")(host_commands.agent_file)
app.add_typer(host_commands.database)
add_verbs(app, VERBS)


def main() -> NoReturn:
    run_and_exit(app, "s3-envctl")
