"""Users, groups, tokens and the own account, by the verbs that page, API and command share."""

import base64
from collections.abc import Callable
from typing import Any

import pyotp
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import event, select

from envctl.accounts import logins, passwords, tokens, totp
from envctl.accounts.people import find_user, first_admin, recover_admin
from envctl.accounts.scopes import SCOPES
from envctl.accounts.ssh_keys import check_key
from envctl.accounts.tokens import TOKENS_MAX
from envctl.calling import Caller
from envctl.database.models import AuditRow, User
from envctl.errors import EnvctlError, Forbidden, Invalid, NoSuchThing, Refused, TooMany
from envctl.states import EnvironmentState
from envctl.verbs import auditing, people, profile
from envctl.verbs.people_models import (
    AddGroup,
    AddUser,
    AskAudit,
    ChangePassword,
    ConfirmTotp,
    CreateToken,
    EndLogin,
    GroupMember,
    ListTokens,
    ListUsers,
    OneGroup,
    OneToken,
    OneUser,
    Proof,
    SetKeys,
    UpdateGroup,
    UpdateProfile,
    UpdateUser,
)
from envctl.verbs.verb import Nothing
from tests.envctl.world import CHEAP, PASSWORD, World


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hashing costs is another test's matter."""
    monkeypatch.setattr(passwords, "HASHER", CHEAP)
    passwords._nobody.cache_clear()


def sign_in(world: World, name: str) -> Caller:
    with world.database.write() as session:
        user = find_user(session, name)
        made = logins.create(session, world.context, user, "full", address="192.0.2.1", agent="test")
    found = logins.find(world.context, made.cookie, address="192.0.2.1")
    assert found is not None
    assert found.caller is not None
    return found.caller


def signed_in_count(world: World, name: str) -> int:
    return len(profile.profile_logins(world.context, world.caller(name), Nothing()))


def stored(world: World, name: str) -> User:
    with world.database.read() as session:
        return find_user(session, name)


# The first admin.


def test_the_first_admin_gets_a_password_once(new_world: Callable[..., World]) -> None:
    world = new_world(users=False)
    made = first_admin(world.context)
    assert made.one_time_password
    user = stored(world, "admin")
    assert (user.role, user.password_must_change) == ("admin", True)
    assert passwords.is_password(made.one_time_password, user.password_hash)
    with pytest.raises(Refused, match="admin already"):
        first_admin(world.context, "second")
    with pytest.raises(Invalid):
        first_admin(world.context, "Not A Name")


def test_a_password_that_was_given_is_not_told_back(new_world: Callable[..., World]) -> None:
    world = new_world(users=False)
    assert first_admin(world.context, "chef", "correct horse battery").one_time_password is None
    assert not stored(world, "chef").password_must_change


def test_who_has_the_host_recovers_an_admin(world: World) -> None:
    sign_in(world, "alice")
    made = recover_admin(world.context, "alice")
    user = stored(world, "alice")
    assert user.role == "admin"
    assert made.one_time_password is not None
    assert passwords.is_password(made.one_time_password, user.password_hash)
    assert signed_in_count(world, "alice") == 0


# Users.


def test_a_user_is_added_changed_and_removed(world: World) -> None:
    root = world.caller("root")
    people.group_add(world.context, root, AddGroup(name="staff"))
    added = people.user_add(world.context, root, AddUser(name="carol", groups=["staff"], email="carol@example.org"))
    assert added.user.groups == ["staff"]
    assert added.one_time_password
    assert stored(world, "carol").password_must_change
    with pytest.raises(Refused, match="taken"):
        people.user_add(world.context, root, AddUser(name="carol"))
    changed = people.user_update(world.context, root, UpdateUser(user="carol", role="operator", groups=[]))
    assert (changed.role, changed.groups) == ("operator", [])
    people.user_remove(world.context, root, OneUser(user="carol"))
    with pytest.raises(NoSuchThing):
        people.user_show(world.context, root, OneUser(user="carol"))


@pytest.mark.parametrize("name", ["", "Carol", "../etc", "a b", "-x", "x-", "é", "x" * 41, "a/b", "a\x00", "a\n"])
def test_names_that_could_be_more_than_names_are_not_taken(world: World, name: str) -> None:
    root = world.caller("root")
    with pytest.raises(Invalid):
        people.user_add(world.context, root, AddUser(name=name))
    with pytest.raises(Invalid):
        people.group_add(world.context, root, AddGroup(name=name))


def test_a_user_with_environments_is_not_removed(world: World) -> None:
    world.add_environment("alice", "one", world.add_template())
    with pytest.raises(Refused, match="environments"):
        people.user_remove(world.context, world.caller("root"), OneUser(user="alice"))


def test_a_disabled_user_is_out_at_once(world: World) -> None:
    alice = sign_in(world, "alice")
    token = people.token_create(world.context, alice, CreateToken(name="cli", scopes=["*"])).secret
    assert tokens.find(world.context, token) is not None
    people.user_update(world.context, world.caller("root"), UpdateUser(user="alice", enabled=False))
    assert signed_in_count(world, "alice") == 0
    assert tokens.find(world.context, token) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda world: people.user_update(world.context, world.caller("root"), UpdateUser(user="root", role="user")),
        lambda world: people.user_update(world.context, world.caller("root"), UpdateUser(user="root", enabled=False)),
        lambda world: people.user_remove(world.context, world.caller("root"), OneUser(user="root")),
    ],
)
def test_there_is_always_an_admin(world: World, change: Callable[[World], Any]) -> None:
    with pytest.raises(Refused):
        change(world)
    assert world.caller("root").role == "admin"


def test_an_admin_by_group_alone_is_an_admin(world: World) -> None:
    root = world.caller("root")
    people.group_add(world.context, root, AddGroup(name="admins", role="admin", members=["alice"]))
    assert world.caller("alice").role == "admin"
    people.user_update(world.context, root, UpdateUser(user="root", role="user"))
    alice = world.caller("alice")
    for change in (
        lambda: people.group_leave(world.context, alice, GroupMember(group="admins", user="alice")),
        lambda: people.group_remove(world.context, alice, OneGroup(group="admins")),
        lambda: people.group_update(world.context, alice, UpdateGroup(group="admins", role="-")),
    ):
        with pytest.raises(Refused, match="no admin"):
            change()
    people.group_join(world.context, alice, GroupMember(group="admins", user="bob"))
    people.group_leave(world.context, alice, GroupMember(group="admins", user="alice"))
    assert world.caller("alice").role == "user"


def test_a_group_that_a_template_is_for_stays(world: World) -> None:
    """Else the template would be for everybody."""
    root = world.caller("root")
    group = people.group_add(world.context, root, AddGroup(name="staff"))
    world.add_template(groups=[group.id])
    with pytest.raises(Refused, match="template debian"):
        people.group_remove(world.context, root, OneGroup(group="staff"))


# Tokens.


def test_a_token_is_told_once_and_kept_as_a_hash(world: World) -> None:
    alice = sign_in(world, "alice")
    made = people.token_create(world.context, alice, CreateToken(name="cli", scopes=["env:read", "env:read"], days=1))
    assert made.secret.startswith("bwe_")
    assert made.token.scopes == ["env:read"]
    found = tokens.find(world.context, made.secret, address="192.0.2.9")
    assert found is not None
    assert (found.name, found.scopes, found.via) == ("alice", frozenset({"env:read"}), "api")
    (listed,) = people.token_list(world.context, alice, ListTokens())
    assert (listed.last_used_from, listed.usable) == ("192.0.2.9", True)
    assert made.secret not in listed.model_dump_json()
    with world.database.read() as session:
        rows = session.scalars(select(AuditRow)).all()
    assert not any(made.secret in str(row.detail) or made.secret.split("_")[2] in str(row.detail) for row in rows)


def test_a_token_that_is_changed_expired_or_revoked_is_nobodys(world: World) -> None:
    alice = sign_in(world, "alice")
    made = people.token_create(world.context, alice, CreateToken(name="cli", scopes=["*"], days=1))
    other = people.token_create(world.context, alice, CreateToken(name="two", scopes=["*"], days=None))
    prefix, row_id, secret = made.secret.split("_")
    for wrong in (
        "",
        "bwe_",
        made.secret[:-1],
        made.secret + "a",
        f"{prefix}_{row_id}_",
        f"{prefix}_{row_id}_{other.secret.split('_')[2]}",
        f"xyz_{row_id}_{secret}",
        f"{prefix}_{'0' * 26}_{secret}",
        f"{prefix}_../../x_{secret}",
    ):
        assert tokens.find(world.context, wrong) is None, wrong
    world.clock.now += 86400
    assert tokens.find(world.context, made.secret) is None
    assert tokens.find(world.context, other.secret) is not None
    people.token_revoke(world.context, alice, OneToken(token=other.token.id))
    assert tokens.find(world.context, other.secret) is None


def test_a_token_makes_none_that_may_more(world: World) -> None:
    weak = world.caller("alice", scopes=frozenset({"token:write", "env:write"}))
    made = people.token_create(world.context, weak, CreateToken(name="less", scopes=["env:read"], days=1))
    assert made.token.scopes == ["env:read"]
    for scope in set(SCOPES) - {"env:read", "env:write", "token:read", "token:write"}:
        with pytest.raises(Forbidden):
            people.token_create(world.context, weak, CreateToken(name="more", scopes=[scope], days=1))
    with pytest.raises(Forbidden, match="never expires"):
        people.token_create(world.context, weak, CreateToken(name="long", scopes=["env:read"], days=None))
    with pytest.raises(Invalid):
        people.token_create(world.context, sign_in(world, "alice"), CreateToken(name="x", scopes=["env:fly"]))


def test_tokens_of_others_are_not_there(world: World) -> None:
    made = people.token_create(world.context, sign_in(world, "alice"), CreateToken(name="cli", scopes=["*"]))
    for name in ("bob", "ops"):
        with pytest.raises(NoSuchThing):
            people.token_revoke(world.context, world.caller(name), OneToken(token=made.token.id))
    assert people.token_list(world.context, world.caller("bob"), ListTokens()) == []
    with pytest.raises(Forbidden):
        people.token_list(world.context, world.caller("bob"), ListTokens(user="alice"))
    people.token_revoke(world.context, world.caller("root"), OneToken(token=made.token.id))
    assert tokens.find(world.context, made.secret) is None


# The own account.


def test_a_new_password_ends_all_other_sign_ins(world: World) -> None:
    alice = sign_in(world, "alice")
    sign_in(world, "alice")
    sign_in(world, "bob")
    profile.profile_password(
        world.context, alice, ChangePassword(current_password=PASSWORD, new_password="another four words")
    )
    assert [one.this for one in profile.profile_logins(world.context, alice, Nothing())] == [True]
    assert signed_in_count(world, "bob") == 1
    assert passwords.is_password("another four words", stored(world, "alice").password_hash)


def test_whoever_sits_at_an_open_browser_cannot_guess_the_password(world: World) -> None:
    alice = sign_in(world, "alice")
    raised: list[type[EnvctlError]] = []
    for number in range(10):
        try:
            profile.profile_totp_off(world.context, alice, Proof(current_password=f"guess number {number}"))
        except EnvctlError as error:
            raised.append(type(error))
    assert raised[0] is Forbidden
    assert raised[-1] is TooMany
    with pytest.raises(TooMany):
        profile.profile_totp_off(world.context, alice, Proof(current_password=PASSWORD))


@pytest.mark.parametrize("new", ["short", PASSWORD, "alice", "passwordpassword"])
def test_a_new_password_must_be_a_good_one(world: World, new: str) -> None:
    with pytest.raises(Invalid) as caught:
        profile.profile_password(
            world.context, sign_in(world, "alice"), ChangePassword(current_password=PASSWORD, new_password=new)
        )
    assert "new_password" in caught.value.details


def test_a_second_factor_is_set_up_and_taken_away(world: World) -> None:
    alice = sign_in(world, "alice")
    sign_in(world, "alice")
    begun = profile.profile_totp_begin(world.context, alice, Proof(current_password=PASSWORD))
    assert f"secret={begun.secret}" in begun.uri
    assert begun.qr_png.startswith("data:image/png;base64,")
    assert base64.b64decode(begun.qr_png.partition(",")[2]).startswith(b"\x89PNG")
    assert not stored(world, "alice").totp_confirmed
    with pytest.raises(Invalid):
        profile.profile_totp_confirm(world.context, alice, ConfirmTotp(code="000000"))
    code = pyotp.TOTP(begun.secret).at(int(world.context.now()))
    answer = profile.profile_totp_confirm(world.context, alice, ConfirmTotp(code=code))
    assert len(answer.codes) == totp.RECOVERY_CODES
    assert signed_in_count(world, "alice") == 1
    with pytest.raises(Refused, match="already"):
        profile.profile_totp_begin(world.context, alice, Proof(current_password=PASSWORD))
    fresh = profile.profile_recovery_codes(world.context, alice, Proof(current_password=PASSWORD))
    assert not set(fresh.codes) & set(answer.codes)
    profile.profile_totp_off(world.context, alice, Proof(current_password=PASSWORD))
    user = stored(world, "alice")
    assert (user.totp_confirmed, user.totp_secret) == (False, None)


def ssh_key(comment: str = "") -> str:
    raw = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{raw.decode()} {comment}".strip()


def test_keys_are_kept_once_each_as_one_line(world: World) -> None:
    one, two = ssh_key("alice@laptop"), ssh_key()
    shown = profile.profile_keys(world.context, world.caller("alice"), SetKeys(keys=[f"  {one}\n", two, one]))
    assert shown.ssh_keys == [one, two]
    assert profile.profile_keys(world.context, world.caller("alice"), SetKeys(keys=[])).ssh_keys == []


def test_what_is_no_public_key_never_gets_into_authorized_keys(world: World) -> None:
    good = ssh_key()
    kind, data = good.split(" ")
    weak = generate_private_key(65537, 1024).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    for bad in (
        "",
        "hello",
        data,
        f'command="rm -rf /" {good}',
        f"{kind} {data}\n{good}",
        f"ssh-rsa {data}",
        f"{kind} {data[:-8]}",
        f"{kind} ????",
        f"{kind} {data} comment\x00",
        f"{kind} {data} comment\rssh-rsa AAAA",
        weak,
        "-----BEGIN OPENSSH PRIVATE KEY----- abc",
        f"{good} {'x' * 10_000}",
    ):
        with pytest.raises(ValueError) as caught:
            check_key(bad)
        assert "abc" not in str(caught.value)
        with pytest.raises(Invalid):
            profile.profile_keys(world.context, world.caller("alice"), SetKeys(keys=[good, bad]))
    assert stored(world, "alice").ssh_keys == []


def test_a_sign_in_elsewhere_is_ended_by_its_owner_alone(world: World) -> None:
    here = sign_in(world, "alice")
    sign_in(world, "alice")
    (other,) = (one for one in profile.profile_logins(world.context, here, Nothing()) if not one.this)
    with pytest.raises(NoSuchThing):
        profile.profile_logout(world.context, sign_in(world, "bob"), EndLogin(login=other.id))
    profile.profile_logout(world.context, here, EndLogin(login=other.id))
    assert signed_in_count(world, "alice") == 1
    sign_in(world, "alice")
    profile.profile_logout_everywhere(world.context, here, Nothing())
    assert [one.this for one in profile.profile_logins(world.context, here, Nothing())] == [True]


# The audit.


def test_the_audit_is_read_in_pages_and_by_what_one_looks_for(world: World) -> None:
    for number in range(7):
        profile.profile_update(world.context, world.caller("alice"), UpdateProfile(display_name=f"Alice {number}"))
    people.group_add(world.context, world.caller("root"), AddGroup(name="staff"))
    with pytest.raises(Forbidden):
        people.group_add(world.context, world.caller("bob"), AddGroup(name="mine"))
    ops = world.caller("ops")
    first = auditing.admin_audit(world.context, ops, AskAudit(limit=5))
    second = auditing.admin_audit(world.context, ops, AskAudit(limit=5, before=first.before))
    numbers = [row.id for row in (*first.rows, *second.rows)]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 9
    assert second.before is None
    (refused,) = auditing.admin_audit(world.context, ops, AskAudit(outcome="forbidden")).rows
    assert (refused.actor, refused.verb, refused.target) == ("bob", "group.add", "mine")
    assert len(auditing.admin_audit(world.context, ops, AskAudit(verb="profile")).rows) == 7
    assert auditing.admin_audit(world.context, ops, AskAudit(actor="root", verb="group.add")).rows[0].outcome == "ok"
    with pytest.raises(Forbidden):
        auditing.admin_audit(world.context, world.caller("alice"), AskAudit())


def test_a_user_has_few_tokens_that_can_be_used(world: World) -> None:
    alice, bob = world.caller("alice"), world.caller("bob")
    asked = CreateToken(name="cli", scopes=["*"], days=1)
    made = [people.token_create(world.context, alice, asked) for _ in range(TOKENS_MAX)]
    with pytest.raises(Refused, match="50 tokens") as refused:
        people.token_create(world.context, alice, asked)
    assert "revoke" in refused.value.hint
    people.token_create(world.context, bob, asked)
    people.token_revoke(world.context, alice, OneToken(token=made[0].token.id))
    people.token_create(world.context, alice, asked)
    with pytest.raises(Refused):
        people.token_create(world.context, alice, asked)
    world.clock.now += 86400.0
    people.token_create(world.context, alice, asked)


def test_a_list_of_users_is_what_each_is_by_itself_in_as_many_queries_as_for_one(world: World) -> None:
    root = world.caller("root")
    template = world.add_template()
    people.group_add(world.context, root, AddGroup(name="staff", role="operator", members=["alice"]))
    people.group_add(world.context, root, AddGroup(name="astronomers", members=["alice"]))
    world.add_environment("alice", "one", template)
    world.add_environment("alice", "gone", template, EnvironmentState.DELETED)
    world.add_environment("bob", "two", template)
    asked: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    one_by_one = {
        name: people.user_show(world.context, root, OneUser(user=name)) for name in ("alice", "bob", "ops", "root")
    }
    event.listen(world.database._reader, "before_cursor_execute", count)
    listed = people.user_list(world.context, root, ListUsers())
    assert {one.name: one for one in listed} == one_by_one
    alice = listed[0]
    assert (alice.groups, alice.effective_role, alice.environments) == (["astronomers", "staff"], "operator", 1)
    assert len([one for one in asked if one.startswith("SELECT")]) == 3
