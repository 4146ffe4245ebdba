"""The pages: what a person sees. `routes` has all of them, `visit` is one request, `rendering` fills the templates.

One rule: a page asks the same verbs as the REST API and the command (`envctl.verbs`), in this process, with the caller of the
browser's sign-in. So it can never do more than they, nor say something else.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import APIRouter

    from envctl.calling import Context
    from envctl.web.events import Watchers


def router(get_context: "Callable[[], Context]", watchers: "Watchers") -> "APIRouter":
    """Every page below `/`, `/static`, and the streams of live logs. Signing in and out is `web.signing_in`'s.

    `watchers.told` belongs into the context as `told`, so that a page hears of a change at once.
    """
    # Here, not above: `web.signing_in` imports `pages.rendering`, and `routes` imports what signs in.
    from envctl.web.pages.routes import router as made

    return made(get_context, watchers)
