"""The adapter and the control plane against a real server that checks signatures: Ceph radosgw, http and TLS."""

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from s3core.clock import SystemClock
from s3core.endpoint import Credentials, Endpoint
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)
from s3core.s3 import S3Store, open_s3_store
from s3core.s3_control import LifecycleRule, ObjectLock, S3Control
from tests.servers.certificates import make_server_certificate
from tests.servers.radosgw import Radosgw
from tests.servers.tunnel import TunnelProxy

pytestmark = pytest.mark.rgw

ODD_KEYS = [
    "plain",
    "a b",
    "a+b",
    "a~b",
    "a//b",
    "./a",
    "../a",
    "a/./b/../c",
    "a/",
    "ключ/鍵/🔑",
    "per%20cent%",
    "q?x=1&y=2#z",
    "quote'\"<>&;:@=,$!*()[]{}|\\^`",
    "\u00e9",
    "e\u0301",
    "z" * 900,
    "tab\tand\nnewline",
    "cr\rx",
    "c\x01",
    "'apostrophe'",
]


@pytest.fixture(scope="module")
def bucket(radosgw: Radosgw) -> str:
    name = f"plain-{uuid.uuid4().hex[:8]}"
    control = S3Control(radosgw.endpoint())
    control.create_bucket(name)
    control.close()
    return name


Open = Callable[..., S3Store]


@pytest.fixture
def store_at(radosgw: Radosgw, bucket: str) -> Iterator[Open]:
    """Open a store of its own in the bucket; keywords change the endpoint."""
    opened: list[S3Store] = []

    def open_store(*, prefix: str | None = None, name: str = bucket, shift_s: float = 0, **changes: Any) -> S3Store:
        endpoint = radosgw.endpoint(**changes)
        place = uuid.uuid4().hex[:8] if prefix is None else prefix
        opened.append(open_s3_store(endpoint, name, place, clock=ShiftedClock(shift_s)))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


class ShiftedClock(SystemClock):
    def __init__(self, shift_s: float) -> None:
        self._shift_s = shift_s

    def time(self) -> float:
        return super().time() + self._shift_s


# --- data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
def test_odd_keys_are_written_read_listed_copied_and_deleted(store_at: Open, tls: bool) -> None:
    store = store_at(tls=tls)
    for key in ODD_KEYS:
        etag = store.put(key, key.encode(), metadata={"a-note": "two words"})
        body = store.get(key)
        assert (body.data, body.etag) == (key.encode(), etag)
        info = store.head(key)
        assert (info.size, info.etag, info.metadata) == (len(key.encode()), etag, {"a-note": "two words"})
    assert [item.key for item in store.list()] == sorted(ODD_KEYS, key=str.encode)
    assert list(store.list_prefixes()) == ["../", "./", "a/", "ключ/"]
    assert [item.key for item in store.list("a", start_after="a/./b/../c")] == ["a//b", "a~b"]
    for key in ODD_KEYS[:14]:
        store.copy(key, f"copy/{key}")
    assert {item.size for item in store.list("copy/")} == {len(key.encode()) for key in ODD_KEYS[:14]}
    assert store.delete_many(item.key for item in store.list()) == {}
    assert list(store.list()) == []


@pytest.mark.slow
def test_a_listing_of_many_pages(store_at: Open) -> None:
    store = store_at()
    keys = [f"n{number:05}/x" for number in range(2500)]
    with_threads(8, lambda index: [store.put(key, b"") for key in keys[index::8]])
    assert [item.key for item in store.list()] == keys
    assert [item.key for item in store.list(start_after=keys[1200])] == keys[1201:]
    assert list(store.list_prefixes()) == [f"{key[:-1]}" for key in keys]
    assert store.delete_many([*keys, "absent"]) == {}


def test_ranges(store_at: Open) -> None:
    store = store_at(tls=True)
    data = bytes(range(256)) * 20_000
    etag = store.put("big", [data[:1_000_000], memoryview(data)[1_000_000:]])
    assert store.get("big").data == data
    body = store.get_range("big", 999_990, 2_000_000)
    assert (body.data, body.etag) == (data[999_990:2_999_990], etag)
    assert store.get_range("big", len(data) - 1, 1).data == data[-1:]
    for offset, length in ((len(data) - 1, 2), (len(data), 1), (len(data) + 5, 10)):
        with pytest.raises(Corrupt) as caught:
            store.get_range("big", offset, length)
        assert caught.value.offset == offset


def test_an_upload_in_parts(store_at: Open) -> None:
    store = store_at(tls=True)
    upload = store.multipart("parts", metadata={"who": "me"})
    upload.part(2, b"tail")
    upload.part(1, b"a" * store.properties.part_bytes_min)
    upload.part(1, b"b" * store.properties.part_bytes_min)
    with pytest.raises(NotFound):
        store.head("parts")
    etag = upload.complete()
    info = store.head("parts")
    assert (info.etag, info.size, info.metadata) == (etag, store.properties.part_bytes_min + 4, {"who": "me"})
    assert store.get_range("parts", store.properties.part_bytes_min - 1, 5).data == b"btail"
    upload.abort()
    forgotten = store.multipart("forgotten")
    forgotten.part(1, b"x")
    forgotten.abort()
    forgotten.abort()
    with pytest.raises(NotFound):
        store.head("forgotten")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
def test_of_racing_creators_exactly_one_wins(store_at: Open, tls: bool) -> None:
    store = store_at(tls=tls)
    for round_number in range(4):
        key = f"race{round_number}"
        outcomes = with_threads(
            12, partial(lambda key, index: outcome(lambda: store.put_if_absent(key, b"%d" % index)), key)
        )
        winner = settled_winner(store, key, outcomes)
        assert outcomes[winner] in ("done", "OutcomeUnknown")
        assert outcomes.count("done") <= 1


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
def test_of_racing_replacers_exactly_one_wins(store_at: Open, tls: bool) -> None:
    store = store_at(tls=tls)
    etag = store.put("head", b"start")
    for _ in range(4):
        outcomes = with_threads(
            12,
            # Never the same bytes twice: the ETag is their MD5, and one that comes back would be matched again.
            partial(
                lambda etag, index: outcome(lambda: store.put_if_match("head", f"{index} {etag}".encode(), etag)), etag
            ),
        )
        winner = settled_winner(store, "head", outcomes)
        assert outcomes[winner] in ("done", "OutcomeUnknown")
        assert outcomes.count("done") <= 1
        etag = store.head("head").etag


def test_a_condition_that_does_not_hold(store_at: Open) -> None:
    store = store_at(tls=True)
    etag = store.put_if_absent("key", b"1")
    with pytest.raises(PreconditionFailed):
        store.put_if_absent("key", b"2")
    newer = store.put_if_match("key", b"3", etag)
    with pytest.raises(PreconditionFailed):
        store.put_if_match("key", b"4", etag)
    with pytest.raises((PreconditionFailed, NotFound)):
        store.put_if_match("absent", b"5", etag)
    assert store.get("key").etag == newer


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except (PreconditionFailed, OutcomeUnknown, Unavailable) as error:
        return type(error).__name__
    return "done"


def settled_winner(store: S3Store, key: str, outcomes: list[str]) -> int:
    winner = int(store.get(key).data.split()[0])
    assert outcomes[winner] != "PreconditionFailed", "the server told the winner that it had lost"
    return winner


def with_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """`work(index)` in `count` threads that begin together; their results by index."""
    results: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(index: int) -> None:
        start.wait()
        results[index] = work(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# --- refusals --------------------------------------------------------------------------------------------


def refusal_of(call: Callable[[], object]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        call()
    return caught.value


def test_a_wrong_secret(store_at: Open) -> None:
    store = store_at(tls=True, credentials=Credentials("testkey", "wrong", source="file /etc/keys"))
    for call in (
        lambda: store.put("k", b""),
        lambda: store.get("k"),
        lambda: store.head("k"),
        lambda: list(store.list()),
    ):
        error = refusal_of(call)
        assert isinstance(error, Denied)
        assert "secret key does not belong to access key testkey (from file /etc/keys)" in error.hint
        assert "wrong" not in str(error)


def test_an_unknown_access_key(store_at: Open) -> None:
    error = refusal_of(lambda: store_at(credentials=Credentials("nobody", "x")).get("k"))
    assert isinstance(error, Denied)
    assert "does not know access key nobody" in error.hint


def test_no_credentials(store_at: Open) -> None:
    error = refusal_of(lambda: store_at(credentials=Credentials()).get("k"))
    assert isinstance(error, Denied)
    assert "no credentials" in error.hint


def test_somebody_elses_bucket(radosgw: Radosgw, store_at: Open) -> None:
    access_key = f"other{uuid.uuid4().hex[:6]}"
    radosgw.create_user(access_key, access_key, "othersecret")
    store = store_at(credentials=Credentials(access_key, "othersecret"))
    for call, permission in (
        (lambda: store.get("k"), "s3:GetObject on its objects"),
        (lambda: store.head("k"), "s3:GetObject on its objects"),
        (lambda: store.put("k", b""), "s3:PutObject on its objects"),
        (lambda: store.delete("k"), "s3:DeleteObject on its objects"),
        (lambda: list(store.list()), "s3:ListBucket on the bucket"),
        (lambda: store.multipart("k"), "s3:PutObject on its objects"),
    ):
        error = refusal_of(call)
        assert isinstance(error, Denied)
        assert permission in error.hint
        assert access_key in error.hint


def test_a_missing_bucket(store_at: Open) -> None:
    store = store_at(name="no-such-bucket")
    for call in (lambda: store.put("k", b""), lambda: store.get("k"), lambda: list(store.list())):
        error = refusal_of(call)
        assert isinstance(error, NotFound)
        assert error.key == ""
        assert "no-such-bucket" in str(error)


@pytest.mark.parametrize(("shift_s", "said"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_clock_that_is_off(store_at: Open, shift_s: float, said: str) -> None:
    store = store_at(tls=True, shift_s=shift_s)
    for call in (lambda: store.put("k", b""), lambda: store.head("k")):
        error = refusal_of(call)
        assert isinstance(error, Misconfigured)
        assert said in str(error)
        seconds = int(str(error).partition(" is ")[2].partition(" seconds")[0].replace(",", ""))
        assert abs(seconds - 3600) < 30


def test_auto_region_works_on_a_server_that_takes_any(store_at: Open) -> None:
    store = store_at(region="auto")
    store.put("k", b"1")
    assert store.get("k").data == b"1"


def test_virtual_hosted_addressing(store_at: Open, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    asked = set()

    def loopback(host: str, *arguments: Any, **options: Any) -> Any:
        asked.add(host)
        return real("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)
    for tls in (False, True):
        by_path = store_at(tls=tls, prefix="hosted")
        origin = by_path._endpoint.address("", "us-east-1").origin
        url = origin.replace("127.0.0.1", "s3.localhost")
        store = store_at(tls=tls, prefix="hosted", url=url, addressing="virtual")
        store.put("a//b +", b"1")
        assert by_path.get("a//b +").data == b"1"
        assert [item.key for item in store.list()] == ["a//b +"]
    assert f"{bucket}.s3.localhost" in asked


# --- certificates ----------------------------------------------------------------------------------------


def test_an_unknown_authority_names_the_fingerprint_to_pin(radosgw: Radosgw, store_at: Open) -> None:
    error = refusal_of(lambda: store_at(tls=True, ca_file="").put("k", b""))
    assert isinstance(error, Misconfigured)
    assert "certificate verify failed" in str(error)
    assert f'fingerprint = "{radosgw.certificate.fingerprint}"' in error.hint
    assert "ca_file" in error.hint


def test_a_pinned_certificate_needs_no_authority(radosgw: Radosgw, store_at: Open) -> None:
    pins = (radosgw.certificate.fingerprint, radosgw.certificate.fingerprint.replace(":", "").lower())
    for pin in pins:
        store = store_at(tls=True, ca_file="", fingerprint=pin)
        store.put("k", b"1")
        assert store.get("k").data == b"1"


def test_another_certificate_than_the_pinned_one(radosgw: Radosgw, store_at: Open) -> None:
    error = refusal_of(lambda: store_at(tls=True, ca_file="", fingerprint="00" * 32).put_if_absent("k", b""))
    assert isinstance(error, Misconfigured)
    assert "not the one that is pinned" in str(error)
    assert radosgw.certificate.fingerprint in error.hint


def test_another_authority_than_the_trusted_one(store_at: Open, tmp_path: Any) -> None:
    other = make_server_certificate(tmp_path)
    error = refusal_of(lambda: store_at(tls=True, ca_file=str(other.authority_file)).get("k"))
    assert isinstance(error, Misconfigured)
    assert "certificate verify failed" in str(error)


def test_https_to_a_port_that_speaks_http(radosgw: Radosgw, store_at: Open) -> None:
    url = f"https://127.0.0.1:{radosgw.http_port}"
    error = refusal_of(lambda: store_at(url=url).put_if_absent("k", b""))
    assert isinstance(error, Misconfigured)
    assert "http://" in error.hint


def test_http_to_a_port_that_speaks_tls(radosgw: Radosgw, store_at: Open) -> None:
    error = refusal_of(lambda: store_at(url=f"http://127.0.0.1:{radosgw.tls_port}").get("k"))
    assert "https://" in error.hint


def test_tls_goes_through_a_proxy_as_a_tunnel(radosgw: Radosgw, store_at: Open) -> None:
    pin = radosgw.certificate.fingerprint
    for trust in ({}, {"ca_file": "", "fingerprint": pin}):
        proxy = TunnelProxy()
        store = store_at(tls=True, proxy=proxy.url, **trust)
        store.put_if_absent("./a b", b"1")
        assert store.get("./a b").data == b"1"
        store.close()
        proxy.stop()
        assert proxy.asked == [f"CONNECT 127.0.0.1:{radosgw.tls_port}"]


def test_a_tunnel_does_not_hide_another_certificate(store_at: Open) -> None:
    proxy = TunnelProxy()
    store = store_at(tls=True, proxy=proxy.url, ca_file="", fingerprint="00" * 32)
    error = refusal_of(lambda: store.put("k", b""))
    store.close()
    proxy.stop()
    assert isinstance(error, Misconfigured)
    assert "not the one that is pinned" in str(error)


def test_a_proxy_that_refuses_to_connect(store_at: Open) -> None:
    proxy = TunnelProxy(refuse=True)
    store = store_at(tls=True, proxy=proxy.url)
    error = refusal_of(lambda: store.put_if_absent("k", b""))
    store.close()
    proxy.stop()
    assert isinstance(error, Unavailable)
    assert "refused to connect" in str(error)
    assert "403" in str(error)


# --- control plane ---------------------------------------------------------------------------------------


@pytest.fixture(params=["http", "tls", "pinned"])
def control(radosgw: Radosgw, request: pytest.FixtureRequest) -> Iterator[S3Control]:
    endpoints: dict[str, Endpoint] = {
        "http": radosgw.endpoint(),
        "tls": radosgw.endpoint(tls=True),
        "pinned": radosgw.endpoint(tls=True, ca_file="", fingerprint=radosgw.certificate.fingerprint),
    }
    made = S3Control(endpoints[request.param])
    yield made
    made.close()


def test_a_bucket_from_creation_to_removal(control: S3Control) -> None:
    name = f"control-{uuid.uuid4().hex[:8]}"
    assert not control.bucket_exists(name)
    control.create_bucket(name)
    control.create_bucket(name)
    assert control.bucket_exists(name)
    assert name in [found.name for found in control.list_buckets()]
    assert control.versioning(name) == ""
    control.set_versioning(name, True)
    assert control.versioning(name) == "Enabled"
    control.set_versioning(name, False)
    assert control.versioning(name) == "Suspended"
    assert control.object_lock(name) == ObjectLock(enabled=False)
    rules = [LifecycleRule("tidy", "tmp/", expire_days=3, abort_uploads_days=1)]
    control.set_lifecycle(name, rules)
    assert control.lifecycle(name) == rules
    control.set_lifecycle(name, [])
    assert control.lifecycle(name) == []
    control.delete_bucket(name)
    assert not control.bucket_exists(name)


def test_object_lock(control: S3Control) -> None:
    name = f"locked-{uuid.uuid4().hex[:8]}"
    control.create_bucket(name, object_lock=True)
    assert control.object_lock(name).enabled
    control.set_object_lock(name, "GOVERNANCE", 7)
    assert control.object_lock(name) == ObjectLock(enabled=True, mode="GOVERNANCE", days=7)
    assert control.versioning(name) == "Enabled"


def test_a_bucket_that_is_not_empty_stays(control: S3Control, bucket: str, store_at: Open) -> None:
    store_at().put("k", b"")
    error = refusal_of(lambda: control.delete_bucket(bucket))
    assert "BucketNotEmpty" in str(error)


def test_control_refusals_read_like_those_of_the_store(radosgw: Radosgw, control: S3Control) -> None:
    missing = refusal_of(lambda: control.versioning("no-such-bucket"))
    assert isinstance(missing, NotFound)
    assert missing.key == ""
    stranger = S3Control(radosgw.endpoint(credentials=Credentials("testkey", "wrong")))
    assert isinstance(refusal_of(stranger.list_buckets), Denied)
    wrong_pin = S3Control(radosgw.endpoint(tls=True, fingerprint="00" * 32))
    assert isinstance(refusal_of(wrong_pin.list_buckets), Misconfigured)
    with pytest.raises(ValueError, match="Invalid"):
        control.create_bucket("No Bucket")
