"""Every verb of the table, so those that come later too: what others have is not there, and a token may what its scopes say."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from sqlalchemy import select

from envctl.accounts.rights import RANK
from envctl.accounts.scopes import NOUNS, SCOPES, allows
from envctl.calling import Caller
from envctl.database.models import AuditRow, Environment, Job
from envctl.errors import EnvctlError, Forbidden, NoSuchThing
from envctl.states import EnvironmentState, JobState
from envctl.verbs.table import VERBS
from envctl.verbs.verb import Done, Verb
from envctl.web.api import call
from tests.envctl.security.site import Site
from tests.envctl.world import World

SAMPLES: dict[str, Any] = {
    "scopes": ["env:read"],
    "keys": [],
    "kind": None,
    "current_password": "x",
    "new_password": "another four words",
    "code": "123456",
    "name": "some-name",
    "template": "debian",
    "expires_at": 2e9,
    "path": "/home",
}
"""For fields that must be there; others get a value by their type."""
ALSO: dict[str, dict[str, Any]] = {"env.resize": {"cores": 2}, "env.update": {"idle_stop_s": 60}}
"""What a request needs beside, to ask for anything."""


def request_for(verb: Verb, **values: Any) -> BaseModel:
    """A request with every field that it must have."""
    given: dict[str, Any] = dict(ALSO.get(verb.name, {}))
    for name, field in verb.request.model_fields.items():
        if name in values:
            given[name] = values[name]
        elif field.is_required():
            options = get_args(field.annotation)
            sample = SAMPLES.get(name)
            given[name] = sample if sample is not None else _by_type(options[0] if options else field.annotation)
    return verb.request.model_validate(given)


def _by_type(annotation: Any) -> Any:
    """A value of a type; of a Literal its first."""
    if not isinstance(annotation, type):
        return annotation
    return {str: "x", int: 1, float: 1.0, bool: True}.get(annotation, [])


def test_the_table_is_as_it_must_be() -> None:
    assert len(VERBS) > 50
    for verb in VERBS:
        noun, _, right = verb.scope.partition(":")
        assert noun in NOUNS, verb.name
        assert right == ("read" if verb.method == "GET" else "write"), verb.name
        request_for(verb)


@pytest.fixture
def theirs(world: World) -> dict[str, str]:
    """Things of alice's, by the name of the field that verbs have for them."""
    template = world.add_template()
    row = world.add_environment("alice", "secret-name", template, EnvironmentState.READY)
    with world.database.write() as session:
        job = Job(
            id=world.context.new_id(),
            environment_id=row.id,
            kind="stop",
            state=JobState.FAILED,
            steps=["backup"],
            created_by="alice",
            created_at=world.context.now(),
        )
        session.add(job)
    return {"environment": row.id, "job": job.id, "from_environment": row.id}


def test_what_others_have_is_not_there_for_any_verb(world: World, theirs: dict[str, str]) -> None:
    """By id, by OWNER/NAME and by name, as for one that never was; and nothing of it is changed."""
    bob = world.caller("bob")
    never = {name: world.context.new_id() for name in theirs}
    tried = set()
    for verb in VERBS:
        fields = set(verb.request.model_fields) & theirs.keys()
        if RANK[verb.role] > RANK["user"] or not fields:
            continue
        (field, *_) = sorted(fields)
        given = [theirs[field], never[field]]
        if field != "job":
            given += ["alice/secret-name", "secret-name"]
        told = []
        for value in given:
            with pytest.raises(EnvctlError) as caught:
                call(world.context, bob, verb, request_for(verb, **{field: value}))
            assert caught.value.status == 404, (verb.name, value, caught.value)
            told.append(str(caught.value).replace(value, "THAT"))
        assert len(set(told)) == 1, (verb.name, told)
        tried.add(verb.name)
    assert {"env.show", "env.stop", "env.delete", "job.show", "job.cancel", "backup.list", "console.ticket"} <= tried
    with world.database.read() as session:
        assert [row.state for row in session.scalars(select(Environment))] == [EnvironmentState.READY]
        assert [row.state for row in session.scalars(select(Job))] == [JobState.FAILED]


def test_lists_show_ones_own(world: World, theirs: dict[str, str]) -> None:
    for verb in VERBS:
        if verb.method != "GET" or RANK[verb.role] > RANK["user"] or "{" in verb.path:
            continue
        answer = call(world.context, world.caller("bob"), verb, request_for(verb))
        text = str([one.model_dump() for one in answer] if isinstance(answer, list) else answer.model_dump())
        for hidden in ("secret-name", *theirs.values()):
            assert hidden not in text, verb.name


@pytest.mark.parametrize("everybody", [{"everybody": True}, {"owner": "alice"}])
def test_asking_for_everybodys_does_not_give_them(
    world: World, theirs: dict[str, str], everybody: dict[str, Any]
) -> None:
    for verb in VERBS:
        if not everybody.keys() <= verb.request.model_fields.keys() or verb.method != "GET":
            continue
        try:
            answer = call(world.context, world.caller("bob"), verb, request_for(verb, **everybody))
        except (Forbidden, NoSuchThing):
            continue
        assert "secret-name" not in str([one.model_dump() for one in answer]), verb.name


def test_a_token_may_what_its_scopes_say_for_each_verb_and_each_scope(world: World) -> None:
    """Before the verb is called: here it only says that it was."""
    root = world.caller("root")

    def may(verb: Verb, caller: Caller) -> bool:
        called = replace(verb, function=lambda context, caller, request: Done())
        try:
            call(world.context, caller, called, request_for(verb))
        except Forbidden:
            return False
        return True

    for verb in VERBS:
        noun, _, right = verb.scope.partition(":")
        enough = {"*", verb.scope} | ({f"{noun}:write"} if right == "read" else set())
        for scope in SCOPES:
            caller = replace(root, scopes=frozenset({scope}))
            assert may(verb, caller) == (scope in enough) == allows({scope}, verb.scope), (verb.name, scope)
        assert not may(verb, replace(root, scopes=frozenset()))
        assert may(verb, root)
        for role in RANK:
            caller = replace(root, role=role)  # type: ignore[arg-type]  # RANK's keys are the roles
            assert may(verb, caller) == (RANK[role] >= RANK[verb.role]), (verb.name, role)


def test_a_verb_checks_by_itself_who_may(world: World, theirs: dict[str, str]) -> None:
    """A page, a command or a schedule that calls a verb's function directly gets no further than the API."""
    nothing = replace(world.caller("bob"), scopes=frozenset({"nothing:read"}))
    open_to_all = []
    for verb in VERBS:
        if RANK[verb.role] == RANK["user"]:
            continue
        given = {name: value for name, value in theirs.items() if name in verb.request.model_fields}
        try:
            verb.function(world.context, nothing, request_for(verb, **given))
        except Forbidden:
            continue
        except EnvctlError as error:
            open_to_all.append(f"{verb.name}: {error.code}")
        else:
            open_to_all.append(verb.name)
    assert open_to_all == []


def test_every_refused_change_leaves_a_row(world: World) -> None:
    bob = world.caller("bob")
    without = []
    for verb in VERBS:
        if verb.method == "GET" or RANK[verb.role] == RANK["user"]:
            continue
        with world.database.write() as session:
            session.query(AuditRow).delete()
        with pytest.raises(EnvctlError):
            verb.function(world.context, bob, request_for(verb))
        with world.database.read() as session:
            rows = session.scalars(select(AuditRow)).all()
        if not any(row.verb == verb.name and row.outcome != "ok" and row.actor == "bob" for row in rows):
            without.append(verb.name)
    assert without == []


TRICKS = (
    "../../etc/passwd",
    "..",
    ".",
    "/",
    "a/../../b",
    "%2e%2e%2f",
    "a\x00b",
    "a\nb",
    "a b",
    "A",
    "-rf",
    "x" * 41,
    "é",
    "a;reboot",
    "$(id)",
    "`id`",
    "a'b",
    'a"b',
    "<script>",
    "env-" + "0" * 60,
    "",
    "a\u202eb",
)


def test_names_are_names(world: World) -> None:
    """What becomes a host name, a tag or a key is checked where it comes in, whoever asks."""
    world.add_template()
    checked = []
    for verb in VERBS:
        if "name" not in verb.request.model_fields or verb.method == "GET" or verb.name == "token.create":
            continue
        for trick in TRICKS:
            with pytest.raises((EnvctlError, ValueError)) as caught:
                call(world.context, world.caller("root"), verb, request_for(verb, name=trick))
            status = getattr(caught.value, "status", 422)
            assert status == 422, (verb.name, trick, caught.value)
        checked.append(verb.name)
    assert {"env.create", "user.add", "group.add"} <= set(checked)


def test_tricks_in_paths_find_nothing(site: Site, world: World, theirs: dict[str, str]) -> None:
    headers = site.token("bob")
    client = site.browser().client
    for trick in ("..%2f..%2fetc", "%00", "..", "alice%2fsecret-name", theirs["environment"], "' OR 1=1", "*", "%"):
        for path in (f"/api/v1/environments/{trick}", f"/api/v1/jobs/{trick}", f"/api/v1/environments/{trick}/backups"):
            answer = client.get(path, headers=headers)
            # A client takes `..` out of a path by itself.
            if trick != "..":
                assert answer.status_code in (404, 405), (path, answer.text)
            assert "secret-name" not in answer.text.replace("alice/secret-name", ""), path
    for path in (
        "/static/../security.py",
        "/static/%2e%2e/security.py",
        "/static/..%2f..%2fsealing.py",
        "/static/%2fetc/x",
    ):
        assert client.get(path).status_code == 404, path
