"""Login: the negotiation table, the stages, and every way to be refused."""

import pytest

from blockdev.iscsi import nodes as nodes_module
from blockdev.iscsi.chap import Credentials, encode_binary, response
from blockdev.iscsi.connection import State
from blockdev.iscsi.errors import LoginStatus
from blockdev.iscsi.login import KEYS, Parameters, Where, negotiate, negotiate_later
from blockdev.iscsi.nodes import Nodes
from blockdev.iscsi.pdu import CONTINUE, FINAL, NO_TAG, Opcode, pack
from tests.blockdev.iscsi.initiator import HOST, IQN, LOGIN_KEYS, READ, Initiator, World, read10

SECRET, MUTUAL = b"a secret of 16 b", b"another secret!!"


@pytest.mark.parametrize(
    ("key", "offer", "result"),
    [
        ("HeaderDigest", "CRC32C,None", "CRC32C"),
        ("HeaderDigest", "None,CRC32C", "None"),
        ("HeaderDigest", "X-md5", "Reject"),
        ("InitialR2T", "Yes", "Yes"),
        ("InitialR2T", "No", "No"),
        ("ImmediateData", "No", "No"),
        ("ImmediateData", "Yes", "Yes"),
        ("ImmediateData", "maybe", "Reject"),
        ("MaxBurstLength", "16776192", "262144"),
        ("MaxBurstLength", "1024", "1024"),
        ("MaxBurstLength", "511", "Reject"),
        ("MaxBurstLength", "0x1000", "4096"),
        ("MaxBurstLength", "lots", "Reject"),
        ("MaxConnections", "8", "1"),
        ("MaxOutstandingR2T", "65535", "8"),
        ("ErrorRecoveryLevel", "2", "0"),
        ("DefaultTime2Wait", "5", "5"),
        ("DefaultTime2Wait", "0", "2"),
        ("DefaultTime2Retain", "20", "0"),
        ("DataPDUInOrder", "No", "Yes"),
        ("DataSequenceInOrder", "No", "Yes"),
        ("IFMarker", "Yes", "No"),
    ],
)
def test_negotiate(key: str, offer: str, result: str) -> None:
    assert negotiate(key, offer) == result


def test_defaults_are_the_rfcs() -> None:
    """RFC 7143 13: what holds if nobody says a word."""
    world = World()
    host = world.initiator()
    host.login(host.names())
    assert host.connection.session is not None
    assert host.connection.session.parameters == Parameters()
    rfc = {
        "FirstBurstLength": "65536",
        "InitialR2T": "Yes",
        "MaxBurstLength": "262144",
        "MaxRecvDataSegmentLength": "8192",
    }
    assert {key: KEYS[key].default for key in rfc} == rfc


def test_shortest_login() -> None:
    host = World().initiator()
    answer = host.log_in()
    assert (answer.status_word, answer.flags) == (0, FINAL | 1 << 2 | 3)
    assert answer.isid_tsih & 0xFFFF
    assert answer.text["TargetPortalGroupTag"] == "1"
    assert answer.text["MaxRecvDataSegmentLength"] == "262144"
    assert answer.max_cmd_sn - answer.exp_cmd_sn >= 127
    assert host.connection.state is State.FULL


def test_security_stage_without_authentication_then_operational() -> None:
    host = World().initiator()
    answer = host.login(host.names() | {"AuthMethod": "CHAP,None"}, stage=0, to=1)
    assert (answer.text["AuthMethod"], answer.flags) == ("None", FINAL | 1)
    assert host.login(LOGIN_KEYS).flags == FINAL | 1 << 2 | 3


def test_security_stage_straight_to_full_feature_phase() -> None:
    host = World().initiator()
    assert host.login(host.names() | {"AuthMethod": "None"}, stage=0, to=3).flags == FINAL | 3
    assert host.connection.state is State.FULL


def test_text_over_several_requests() -> None:
    """C bit: the first half is answered by an empty reply (RFC 7143 6.2)."""
    host = World().initiator()
    data = b"InitiatorName=" + HOST.encode() + b"\0TargetName=" + IQN.encode() + b"\0"
    for part, flags in ((data[:20], 1 << 2 | CONTINUE), (data[20:], FINAL | 1 << 2 | 3)):
        host.send(Opcode.LOGIN, flags, part, immediate=1, isid_tsih=host.isid << 16, cmd_sn=1)
        answer = host.one()
        assert answer.status_word == 0
    assert host.connection.state is State.FULL


def test_unknown_keys_are_not_understood_and_rejected_offers_keep_the_default() -> None:
    host = World().initiator()
    answer = host.login(host.names() | {"X-com.example.thing": "1", "MaxBurstLength": "1", "OFMarkInt": "2048"})
    assert answer.text["X-com.example.thing"] == "NotUnderstood"
    assert answer.text["OFMarkInt"] == "NotUnderstood"
    assert answer.text["MaxBurstLength"] == "Reject"
    assert host.connection.session is not None
    assert host.connection.session.parameters.max_burst == 262144


def test_first_burst_never_exceeds_max_burst() -> None:
    host = World().logged_in(FirstBurstLength="262144", MaxBurstLength="1024")
    assert host.connection.session is not None
    assert host.connection.session.parameters.first_burst == 1024


# ---- refusals


def refused(host: Initiator, status: LoginStatus, keys: dict[str, str], **options: int) -> None:
    answer = host.login(keys, **options)  # type: ignore[arg-type]  # the options of `login`
    assert answer.status_word >> 16 == status
    assert host.connection.state is State.CLOSING
    assert host.connection.failure


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ({"TargetName": IQN}, LoginStatus.MISSING_PARAMETER),
        ({"InitiatorName": HOST}, LoginStatus.MISSING_PARAMETER),
        ({"InitiatorName": HOST, "TargetName": "iqn.2000-01.com.example:none"}, LoginStatus.NOT_FOUND),
        ({"InitiatorName": HOST, "SessionType": "Odd"}, LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
        ({"InitiatorName": HOST, "TargetName": IQN, "lower": "1"}, LoginStatus.INITIATOR_ERROR),
    ],
)
def test_first_request_refused(keys: dict[str, str], status: LoginStatus) -> None:
    refused(World().initiator(), status, keys)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"stage": 2}, LoginStatus.INITIATOR_ERROR),
        ({"stage": 3}, LoginStatus.INITIATOR_ERROR),
        ({"stage": 1, "to": 1}, LoginStatus.INITIATOR_ERROR),
        ({"stage": 1, "to": 0}, LoginStatus.INITIATOR_ERROR),
        ({"stage": 0, "to": 2}, LoginStatus.INITIATOR_ERROR),
        ({"version_min": 1}, LoginStatus.UNSUPPORTED_VERSION),
        ({"tsih": 9}, LoginStatus.SESSION_DOES_NOT_EXIST),
        ({"more": True}, LoginStatus.INITIATOR_ERROR),
    ],
)
def test_header_refused(options: dict[str, int], status: LoginStatus) -> None:
    host = World().initiator()
    refused(host, status, host.names(), **options)


def test_second_connection_of_a_session_is_refused() -> None:
    world = World()
    tsih = world.logged_in().connection.session.tsih  # type: ignore[union-attr]  # it is logged in
    host = world.initiator()
    refused(host, LoginStatus.TOO_MANY_CONNECTIONS, host.names(), tsih=tsih, cid=1)
    assert list(world.nodes.sessions) == [tsih]


def test_connection_reinstatement_keeps_the_session_and_ends_its_tasks() -> None:
    world = World()
    world.target.deferred_reads = True
    first = world.logged_in()
    first.ask(read10(0, 1), flags=READ, expected=512)
    session = first.connection.session
    assert session is not None
    again = world.initiator()
    again.cmd_sn = first.cmd_sn
    answer = again.login(again.names(), tsih=session.tsih)
    assert answer.status_word == 0
    assert answer.isid_tsih & 0xFFFF == session.tsih
    assert first.connection.state is State.CLOSING
    assert list(world.nodes.sessions) == [session.tsih]
    world.target.deferred_reads = False
    world.target.run_all()
    assert first.heard() == []
    assert again.command(bytes(6)).status == 0x02
    assert again.command(bytes(6)).status == 0x00


@pytest.mark.parametrize("other", [{"name": "iqn.x:other"}, {"isid": 0x00023D000002}, {"portal_group": 2}])
def test_connection_of_somebody_elses_session_is_refused(other: dict[str, str | int]) -> None:
    world = World()
    tsih = world.logged_in().connection.session.tsih  # type: ignore[union-attr]  # it is logged in
    host = world.initiator(**other)  # type: ignore[arg-type]  # the options of `initiator`
    refused(host, LoginStatus.SESSION_DOES_NOT_EXIST, host.names(), tsih=tsih)
    assert list(world.nodes.sessions) == [tsih]


def test_the_same_isid_at_another_portal_group_is_another_session() -> None:
    world = World()
    first, second = world.logged_in(), world.initiator(portal_group=2)
    assert second.log_in().text["TargetPortalGroupTag"] == "2"
    assert len(world.nodes.sessions) == 2
    assert first.connection.state is State.FULL
    assert {session.nexus[-6:] for session in world.nodes.sessions.values()} == {"0x0001", "0x0002"}


def test_names_are_compared_in_lower_case() -> None:
    world = World()
    world.nodes.serve("iqn.2004-10.com.example:own", {0: world.target}, initiators=frozenset({HOST}))
    host = world.initiator(HOST.upper())
    assert host.login(host.names("IQN.2004-10.com.example:OWN")).status_word == 0
    assert host.connection.who.startswith(HOST)


@pytest.mark.parametrize("name", ["iqn.x\nINFO forged", "iqn.x y", "iqn." + "x" * 220, "iqn.\x1b[2J"])
@pytest.mark.parametrize("which", ["InitiatorName", "TargetName"])
def test_names_that_are_none(name: str, which: str) -> None:
    host = World().initiator()
    refused(host, LoginStatus.INITIATOR_ERROR, host.names() | {which: name})
    assert "\n" not in host.connection.failure
    assert "\x1b" not in host.connection.failure


def test_keys_negotiated_twice() -> None:
    host = World().initiator()
    host.login(host.names() | {"MaxBurstLength": "1024"}, to=None)
    refused(host, LoginStatus.INITIATOR_ERROR, {"MaxBurstLength": "2048"})


def test_name_given_late() -> None:
    host = World().initiator()
    host.login(host.names(), to=None)
    refused(host, LoginStatus.INITIATOR_ERROR, {"InitiatorName": "iqn.2000-01.com.example:else"})


def test_isid_changed_under_way() -> None:
    host = World().initiator()
    host.login(host.names(), to=None)
    host.isid += 1
    refused(host, LoginStatus.INITIATOR_ERROR, {})


def test_acl() -> None:
    world = World()
    del world.nodes.nodes[IQN]
    world.nodes.serve(IQN, {0: world.target}, initiators=frozenset({HOST}))
    assert world.initiator().log_in().status_word == 0
    other = world.initiator("iqn.2000-01.com.example:else")
    refused(other, LoginStatus.AUTHORIZATION_FAILURE, other.names())


def test_session_limit_and_reinstatement() -> None:
    world = World(sessions_max=1)
    first = world.logged_in()
    other = world.initiator("iqn.2000-01.com.example:else")
    refused(other, LoginStatus.OUT_OF_RESOURCES, other.names())
    again = world.initiator()
    assert again.log_in().status_word == 0
    assert first.connection.state is State.CLOSING
    assert "reinstated" in first.connection.failure
    first.connection.lost()
    assert len(world.nodes.sessions) == 1


def test_another_isid_is_another_session() -> None:
    world = World()
    first = world.logged_in()
    assert world.initiator(isid=0x00023D000002).log_in().status_word == 0
    assert first.connection.state is State.FULL
    assert len(world.nodes.sessions) == 2


def test_anything_but_login_first_closes() -> None:
    host = World().initiator()
    host.send(Opcode.NOP_OUT, itt=1)
    assert host.connection.state is State.CLOSING
    assert host.heard() == []


def test_deadline() -> None:
    host = World().initiator()
    host.connection.expire()
    assert host.connection.failure == "no login in time"
    late = World().logged_in()
    late.connection.expire()
    assert late.connection.state is State.FULL


def test_large_segment_before_login_costs_nothing() -> None:
    host = World().initiator()
    host.deliver(pack(Opcode.LOGIN, immediate=True, length=0xFFFFFF))
    assert host.connection.state is State.CLOSING
    assert "16777215" in host.connection.failure


# ---- CHAP


def chap_world(mutual: bool = False) -> World:
    world = World()
    del world.nodes.nodes[IQN]
    credentials = Credentials("alice", SECRET, "array", MUTUAL) if mutual else Credentials("alice", SECRET)
    world.nodes.serve(IQN, {0: world.target}, credentials=credentials)
    return world


def proof(question: dict[str, str], secret: bytes) -> str:
    challenge = bytes.fromhex(question["CHAP_C"][2:])
    return encode_binary(response(int(question["CHAP_A"]), int(question["CHAP_I"]), secret, challenge))


def test_chap_one_way() -> None:
    host = chap_world().initiator()
    answer = host.login(host.names() | {"AuthMethod": "CHAP,None"}, stage=0, to=1)
    assert (answer.text["AuthMethod"], answer.flags) == ("CHAP", 0)
    assert "TargetPortalGroupTag" not in answer.text
    question = host.login({"CHAP_A": "5"}, stage=0, to=None).text
    answer = host.login({"CHAP_N": "alice", "CHAP_R": proof(question, SECRET)}, stage=0, to=1)
    assert answer.flags == FINAL | 1
    assert answer.text["TargetPortalGroupTag"] == "1"
    assert host.login(LOGIN_KEYS).status_word == 0
    assert host.connection.state is State.FULL


def test_chap_mutual() -> None:
    host = chap_world(mutual=True).initiator()
    host.login(host.names() | {"AuthMethod": "CHAP"}, stage=0, to=None)
    question = host.login({"CHAP_A": "7,5"}, stage=0, to=None).text
    keys = {"CHAP_N": "alice", "CHAP_R": proof(question, SECRET), "CHAP_I": "3", "CHAP_C": "0x" + "ab" * 16}
    answer = host.login(keys, stage=0, to=3)
    assert answer.text["CHAP_N"] == "array"
    assert answer.text["CHAP_R"] == encode_binary(response(7, 3, MUTUAL, b"\xab" * 16))
    assert host.connection.state is State.FULL


@pytest.mark.parametrize(
    ("keys", "stage", "to"),
    [
        ({}, 1, 3),  # skipping the security stage
        ({"AuthMethod": "None"}, 0, 1),
        ({"AuthMethod": "SRP,KRB5"}, 0, 1),
        ({}, 0, 3),
    ],
)
def test_chap_cannot_be_got_around(keys: dict[str, str], stage: int, to: int) -> None:
    host = chap_world().initiator()
    refused(host, LoginStatus.AUTHENTICATION_FAILURE, host.names() | keys, stage=stage, to=to)


def test_chap_wrong_secret() -> None:
    host = chap_world().initiator()
    host.login(host.names() | {"AuthMethod": "CHAP"}, stage=0, to=None)
    question = host.login({"CHAP_A": "5"}, stage=0, to=None).text
    keys = {"CHAP_N": "alice", "CHAP_R": proof(question, b"wrong")}
    refused(host, LoginStatus.AUTHENTICATION_FAILURE, keys, stage=0, to=1)


def test_chap_left_half_way() -> None:
    """Transit is not granted while CHAP is under way, however often it is asked for."""
    host = chap_world().initiator()
    for keys in (host.names() | {"AuthMethod": "CHAP"}, {}, {}):
        assert host.login(keys, stage=0, to=3).flags & FINAL == 0
    assert host.connection.session is None


def test_target_that_asks_for_none_refuses_chap_only() -> None:
    host = World().initiator()
    refused(host, LoginStatus.AUTHENTICATION_FAILURE, host.names() | {"AuthMethod": "CHAP"}, stage=0, to=1)


# ---- discovery


def discovery(world: World, name: str = HOST) -> Initiator:
    host = world.initiator(name)
    answer = host.login({"InitiatorName": name, "SessionType": "Discovery", "MaxBurstLength": "512"})
    assert answer.status_word == 0
    assert answer.text["MaxBurstLength"] == "Irrelevant"
    return host


def text_request(host: Initiator, data: bytes, *, ttt: int = NO_TAG, flags: int = FINAL) -> tuple[int, int, bytes]:
    host.send(Opcode.TEXT, flags, data, itt=4, ttt=ttt, cmd_sn=host.cmd_sn, immediate=1)
    answer = host.one()
    assert answer.opcode == Opcode.TEXT_RESPONSE
    return answer.flags, answer.ttt, answer.data


def test_send_targets() -> None:
    world = World()
    world.nodes.serve("iqn.2004-10.com.example:hidden", {0: world.target}, initiators=frozenset({"iqn.x"}))
    host = discovery(world)
    flags, tag, data = text_request(host, b"SendTargets=All\0")
    assert (flags, tag) == (FINAL, NO_TAG)
    assert data == f"TargetName={IQN}\0TargetAddress=192.0.2.1:3260,1\0".encode()


def test_send_targets_in_a_normal_session_tells_only_its_own() -> None:
    world = World()
    world.nodes.serve("iqn.2004-10.com.example:other", {0: world.target})
    host = world.logged_in()
    assert IQN.encode() in text_request(host, b"SendTargets=\0")[2]
    assert text_request(host, b"SendTargets=iqn.2004-10.com.example:other\0")[2] == b""
    host.send(Opcode.TEXT, data=b"SendTargets=All\0", itt=4, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    assert host.one().opcode == Opcode.REJECT
    assert host.connection.state is State.CLOSING


def test_long_answer_comes_in_parts() -> None:
    world = World()
    for number in range(200):
        world.nodes.serve(f"iqn.2004-10.com.example:disk{number:03d}", {0: world.target})
    host = discovery(world)
    flags, tag, data = text_request(host, b"SendTargets=All\0")
    whole = data
    while not flags & FINAL:
        assert flags == CONTINUE
        flags, tag, data = text_request(host, b"", ttt=tag)
        whole += data
    assert whole.count(b"TargetName=") == 201


def test_question_in_parts() -> None:
    host = discovery(World())
    flags, tag, data = text_request(host, b"SendTar", flags=CONTINUE)
    assert (flags, data) == (0, b"")
    assert IQN.encode() in text_request(host, b"gets=All\0", ttt=tag)[2]


def test_text_with_a_tag_nobody_gave() -> None:
    host = discovery(World())
    host.send(Opcode.TEXT, data=b"SendTargets=All\0", itt=4, ttt=99, cmd_sn=host.cmd_sn, immediate=1)
    assert host.connection.state is State.CLOSING


def test_commands_have_no_place_in_a_discovery_session() -> None:
    host = discovery(World())
    host.ask(bytes(6))
    assert host.connection.state is State.CLOSING


def test_discovery_may_ask_for_its_own_credentials() -> None:
    world = World(discovery_credentials=Credentials("finder", SECRET))
    host = world.initiator()
    refused(host, LoginStatus.AUTHENTICATION_FAILURE, {"InitiatorName": HOST, "SessionType": "Discovery"})


def test_discovery_with_chap_both_ways() -> None:
    world = World(discovery_credentials=Credentials("finder", SECRET, "found", MUTUAL))
    host = world.initiator()
    host.login({"InitiatorName": HOST, "SessionType": "Discovery", "AuthMethod": "CHAP"}, stage=0, to=None)
    question = host.login({"CHAP_A": "5"}, stage=0, to=None).text
    keys = {"CHAP_N": "finder", "CHAP_R": proof(question, SECRET), "CHAP_I": "3", "CHAP_C": "0x" + "ab" * 16}
    answer = host.login(keys, stage=0, to=3)
    assert (answer.text["CHAP_N"], answer.status_word) == ("found", 0)
    assert IQN.encode() in text_request(host, b"SendTargets=All\0")[2]
    # What is asked for discovery is not asked for the target, and does not open it.
    assert world.initiator("iqn.x").log_in().status_word == 0


def test_discovery_sessions_leave_room_for_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "DISCOVERIES_MAX", 2)
    world = World()
    for _ in range(2):
        discovery(world)
    host = world.initiator()
    refused(host, LoginStatus.OUT_OF_RESOURCES, {"InitiatorName": HOST, "SessionType": "Discovery"})
    assert world.logged_in().connection.state is State.FULL


# ---- full feature phase


def test_only_some_keys_may_change_later() -> None:
    changed, pairs = negotiate_later(
        Parameters(),
        {"MaxRecvDataSegmentLength": "4096", "MaxBurstLength": "512", "X-odd": "1", "InitiatorAlias": "me"},
    )
    assert changed.send_segment_max == 4096
    assert pairs == [("MaxBurstLength", "Reject"), ("X-odd", "NotUnderstood")]
    assert [key for key, row in KEYS.items() if row.where is Where.ANY] == [
        "MaxRecvDataSegmentLength",
        "InitiatorAlias",
    ]


def test_nodes_names() -> None:
    nodes = Nodes()
    for name in (
        "disk1",
        "iqn.2004.com.example:x",
        "iqn.2004-10.com.example:a b",
        "iqn.2004-10.com.example:" + "x" * 220,
    ):
        with pytest.raises(ValueError, match="iSCSI name"):
            nodes.serve(name, {})
    nodes.serve("eui.02004567a425678d", {})
    with pytest.raises(ValueError, match="exists"):
        nodes.serve("eui.02004567a425678d", {})


def test_removed_target_drops_its_sessions() -> None:
    world = World()
    host = world.logged_in()
    world.nodes.remove(IQN)
    assert host.connection.state is State.CLOSING
    assert host.notified
    assert world.nodes.sessions == {}
