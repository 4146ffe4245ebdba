"""Settings that are kept in the console: show them, set one, go back to what the file says."""

from typing import Final, cast

from pydantic import Field

from envctl.accounts.rights import require
from envctl.calling import Caller, Context
from envctl.database.models import Setting
from envctl.errors import NoSuchThing
from envctl.live_settings import KEPT, LiveSettings, checked, file_settings
from envctl.verbs.verb import Answer, Nothing, Request, Verb
from s3core.settings import EnvctlSettings

Value = str | float | int


class SettingShown(Answer):
    key: str
    value: Value
    """What holds now. Seconds or bytes where the key ends so."""
    from_file: Value
    kept: bool
    """Set in the console; else the file's, or the default."""
    description: str


class SettingKey(Request):
    key: str = Field(max_length=64, description="name of the setting")


class SetSetting(SettingKey):
    value: Value = Field(description="as in the configuration file; plain numbers are seconds or bytes")


def show(context: Context, caller: Caller, request: Nothing) -> list[SettingShown]:
    """Those that can be set here, in the order of the page."""
    require(caller, "settings:read", "admin")
    with context.database.read() as session:
        rows = {key: row.value for key in KEPT if (row := session.get(Setting, key)) is not None}
    return [_shown(context, key, rows) for key in KEPT]


def set_one(context: Context, caller: Caller, request: SetSetting) -> SettingShown:
    """It holds at once here, and within seconds in every process. Invalid."""
    detail = {"value": request.value}
    with context.audit.act(caller, "settings.set", target=request.key, detail=detail) as act:
        require(caller, "settings:write", "admin")
        _known(request.key)
        value = checked(request.key, request.value)
        row = act.session.get(Setting, request.key)
        if row is None:
            act.session.add(Setting(key=request.key, value=value))
        else:
            row.value = value
    _forget(context)
    return _shown(context, request.key, {request.key: value})


def reset(context: Context, caller: Caller, request: SettingKey) -> SettingShown:
    """What the file says holds again."""
    with context.audit.act(caller, "settings.reset", target=request.key) as act:
        require(caller, "settings:write", "admin")
        _known(request.key)
        row = act.session.get(Setting, request.key)
        if row is not None:
            act.session.delete(row)
    _forget(context)
    return _shown(context, request.key, {})


def _known(key: str) -> None:
    if key not in KEPT:
        raise NoSuchThing(
            f"there is no setting {key!r} that is kept in the console",
            hint="s3-envctl settings show lists them; all others stand in the configuration file",
        )


def _shown(context: Context, key: str, rows: dict[str, object]) -> SettingShown:
    from_file = getattr(file_settings(context.settings), key)
    value = cast(Value, checked(key, rows[key])) if key in rows else from_file
    field = EnvctlSettings.model_fields[key]
    return SettingShown(
        key=key, value=value, from_file=from_file, kept=key in rows, description=field.description or ""
    )


def _forget(context: Context) -> None:
    if isinstance(context.settings, LiveSettings):
        context.settings.forget()


VERBS: Final = (
    Verb(
        name="settings.show",
        method="GET",
        path="/settings",
        scope="settings:read",
        function=show,
        request=Nothing,
        answer=list[SettingShown],
        summary="Show the settings that are kept in the console",
        role="admin",
    ),
    Verb(
        name="settings.set",
        method="PUT",
        path="/settings/{key}",
        scope="settings:write",
        function=set_one,
        request=SetSetting,
        answer=SettingShown,
        summary="Set one, over what the configuration file says",
        role="admin",
    ),
    Verb(
        name="settings.reset",
        method="DELETE",
        path="/settings/{key}",
        scope="settings:write",
        function=reset,
        request=SettingKey,
        answer=SettingShown,
        summary="Go back to what the configuration file says",
        role="admin",
    ),
)
