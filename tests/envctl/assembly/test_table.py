"""The table of verbs, the REST API, the command and the document say the same."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import click
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel
from typer.main import get_command

from envctl import cli, verbs
from envctl.accounts.scopes import SCOPES
from envctl.verb_commands import NOUNS
from envctl.verb_document import command_of, in_path, verbs_markdown
from envctl.verbs.table import VERBS
from envctl.verbs.verb import Request, Stream, Verb
from envctl.web import api
from tests.envctl.world import World, make_world

ROOT = Path(__file__).parents[3]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_every_module_of_verbs_is_in_the_table() -> None:
    found: list[Verb] = []
    for module in pkgutil.iter_modules(verbs.__path__):
        if module.name != "table":
            found += getattr(importlib.import_module(f"envctl.verbs.{module.name}"), "VERBS", ())
    assert {verb.name for verb in found} == {verb.name for verb in VERBS}
    assert len(VERBS) == len({verb.name for verb in VERBS}) == len({(verb.method, verb.path) for verb in VERBS})


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_is_whole(verb: Verb) -> None:
    assert verb.scope in SCOPES
    assert verb.name.partition(".")[0] in NOUNS
    assert not verb.summary.endswith(".")
    assert issubclass(verb.request, Request)
    fields = verb.request.model_fields
    assert set(in_path(verb)) <= set(fields), "a place of the path that no field fills"
    missing = [name for name, field in fields.items() if not field.description]
    assert not missing, f"no description: {missing}"
    parameters = list(inspect.signature(verb.function).parameters)
    assert len(parameters) == 3, "context, caller, request"
    # A GET changes nothing, so a page of others may make a browser send it.
    assert verb.method != "GET" or verb.scope.endswith(":read")


def test_the_api_has_a_route_for_each(world: World) -> None:
    made = api.router(VERBS, lambda: world.context, lambda request: world.caller("root"))
    routes = {
        (method, route.path): route.name
        for route in made.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert routes == {(verb.method, api.PREFIX + verb.path): verb.name for verb in VERBS}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_command_has_one_for_each(verb: Verb) -> None:
    top = get_command(cli.app)
    noun, _, name = verb.name.partition(".")
    assert isinstance(top, click.Group | type(top))
    command = top.commands[noun].commands[name.replace("_", "-")]  # type: ignore[attr-defined]  # groups have commands
    arguments = [one.name for one in command.params if one.param_type_name == "argument"]
    options = {one.name for one in command.params if one.param_type_name == "option"}
    assert arguments == in_path(verb)
    extra = {"yes"} if verb.destructive else set()
    extra |= {"output"} if verb.answer is Stream else {"as_json"}
    assert options - {"help"} == set(verb.request.model_fields) - set(arguments) | extra
    assert command.help.startswith(verb.summary)


def test_what_is_destroyed_is_asked_for() -> None:
    gone = {"env.delete", "env.reset", "admin.orphan_destroy", "template.remove", "user.remove"} & {
        v.name for v in VERBS
    }
    assert gone
    assert all(verb.destructive for verb in VERBS if verb.name in gone)


def test_the_document_is_drawn_from_it() -> None:
    written = (ROOT / "docs/envctl/verbs.md").read_text(encoding="utf-8")
    assert written == verbs_markdown(), "run `make docs`"
    for verb in VERBS:
        assert f"`{command_of(verb)}`" in written


def test_answers_are_models() -> None:
    for verb in VERBS:
        answer = verb.answer
        inner = answer.__args__[0] if getattr(answer, "__origin__", None) is list else answer
        assert inner is Stream or (isinstance(inner, type) and issubclass(inner, BaseModel)), verb.name
