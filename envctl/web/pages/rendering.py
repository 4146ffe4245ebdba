"""Templates become pages here. The one place that knows Jinja; also what `web.signing_in` draws its pages with.

One rule: everything is escaped, a missing value is an error (StrictUndefined), and a page has no inline script, handler
or style: the policy that goes with it (`web.security`) would refuse them.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

import jinja2
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from envctl.calling import Caller
from envctl.errors import EnvctlError
from envctl.web.pages import shown
from envctl.web.pages.menu import menu_of

WEB: Final = Path(__file__).resolve().parent.parent
TEMPLATES: Final = WEB / "templates"
STATIC: Final = WEB / "static"


def render(
    template: str,
    /,
    *,
    now: float,
    caller: Caller | None = None,
    csrf: str = "",
    theme: str = "system",
    path: str = "",
    status: int = 200,
    problem: EnvctlError | None = None,
    **values: object,
) -> HTMLResponse:
    """The page of that template. With a `problem` the answer has its status, and the template shows it as a banner and
    beside fields.

    `caller` None: nobody is signed in, there is no menu. `csrf`: the token that each form of the page carries.
    """
    text = (
        _templates()
        .get_template(template)
        .render(
            now=now,
            me=caller,
            csrf=csrf,
            theme=theme,
            path=path,
            menu=menu_of(caller, path) if caller else [],
            problem=problem,
            **values,
        )
    )
    headers = {"Cache-Control": "no-store"}
    return HTMLResponse(text, status_code=problem.status if problem and status == 200 else status, headers=headers)


def static_url(path: str) -> str:
    """Where a file of `static/` is; own files carry a digest, so that a new version is fetched and an old one kept."""
    file = STATIC / path
    return f"/static/{path}?v={_digest(file)}" if file.is_file() else f"/static/{path}"


@cache
def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


@cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        size=shown.size,
        memory=shown.memory,
        duration=shown.duration,
        exact=shown.exact,
        machine=shown.machine_time,
        clock=shown.clock,
        local=shown.local,
        sentence=shown.sentence,
        rounded=shown.rounded,
        plain=shown.plain,
        q=lambda text: quote(str(text), safe=""),
    )
    made.globals.update(
        static=static_url,
        count=shown.count,
        state_badge=shown.state,
        is_busy=shown.is_busy,
        rpo_badge=shown.rpo,
        percent=shown.percent,
        when=when,
    )
    return made


def when(moment: float | None, now: float, missing: str = "never") -> str:
    """A moment, relative in the text and exact in the title. The script of the page keeps the text true."""
    if moment is None:
        return missing
    # Digits, signs and units of ours: nothing in them needs to be escaped, and a list has hundreds.
    machine, exact, ago = shown.machine_time(moment), shown.exact(moment), shown.ago(moment, now)
    return Markup(f'<time datetime="{machine}" title="{exact}" data-ago>{ago}</time>')
