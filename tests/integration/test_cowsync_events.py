"""Events of a real gateway, as it pushes them over HTTP, into a file that `cowsync` follows."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.config import Config
from botocore.session import Session

from s3core.bucket_stack import open_bucket
from s3core.s3_control import S3Control
from s3core.settings import load_config
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw
ODD = ["plain", "with blank", "plus+plus", "per%cent", "per%41cent", "ünïcode/é", "a//b", "&<>'\""]


@contextmanager
def receiver(path: Path) -> Iterator[str]:
    """What docs/cowsync/events.md asks for: the body of a POST as a line, synced, then 200."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock, path.open("ab") as file:
                file.write(body.replace(b"\n", b" ") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def until(what: str, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def notify(radosgw: Radosgw, bucket: str, url: str) -> None:
    """A topic that pushes to `url`, and the bucket's notifications to it, by the interface of Amazon."""
    endpoint = radosgw.endpoint()
    keys: dict[str, Any] = {
        "endpoint_url": endpoint.url,
        "region_name": "default",
        "aws_access_key_id": endpoint.credentials.access_key,
        "aws_secret_access_key": endpoint.credentials.secret_key,
    }
    session = Session()
    topics: Any = session.create_client("sns", config=Config(signature_version="v4"), **keys)
    topic = topics.create_topic(Name=f"t-{bucket}", Attributes={"push-endpoint": url})["TopicArn"]
    buckets: Any = session.create_client("s3", config=Config(s3={"addressing_style": "path"}), **keys)
    buckets.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration={
            "TopicConfigurations": [
                {"Id": "cowsync", "TopicArn": topic, "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}
            ]
        },
    )


def test_what_the_gateway_pushes_is_mirrored_between_two_listings(
    radosgw: Radosgw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint, mark = radosgw.endpoint(), uuid4().hex[:8]
    credentials = endpoint.credentials
    keys = tmp_path / "keys"
    keys.write_text(f'access_key = "{credentials.access_key}"\nsecret_key = "{credentials.secret_key}"\n')
    keys.chmod(0o600)
    control = S3Control(endpoint)
    for name in (f"source-{mark}", f"mirror-{mark}"):
        control.create_bucket(name)
    control.close()
    feed, config = tmp_path / "events.jsonl", tmp_path / "config.toml"
    config.write_text(
        f'[endpoint.ceph]\nurl = "{endpoint.url}"\npreset = "ceph"\nregion = "{endpoint.region}"\naddressing = "path"\n'
        f'credentials = "file:{keys}"\n\n[mirror.m]\nsource = "s3://ceph/source-{mark}"\n'
        f'target = "s3://ceph/mirror-{mark}"\nstate_dir = "{tmp_path / "state"}"\nevery_s = "1h"\n'
        f'events = "{feed}"\nevents_every_s = "500ms"\n'
    )
    config.chmod(0o600)
    source, target = (open_bucket(f"s3://ceph/{name}-{mark}", load_config(config))[0] for name in ("source", "mirror"))
    source.put("before", b"1")
    source.put("lost", b"1")
    environment = {**os.environ, "BUCKETWORKS_CONFIG": str(config)}
    command = [sys.executable, "-m", "cowsync"]

    def held() -> set[str]:
        return {key.decode() for key in target.list_page().keys}

    with receiver(feed) as url:
        notify(radosgw, f"source-{mark}", url)
        with subprocess.Popen([*command, "watch", "m", "--json"], env=environment, stdout=subprocess.PIPE) as service:
            try:
                until("the first listing", lambda: held() == {"before", "lost"})
                until("its end", lambda: (tmp_path / "state" / "feed.json").exists())
                began = time.monotonic()
                for key in ODD:
                    source.put(key, key.encode())
                source.put("before", b"2, longer")
                source.delete("lost")
                until("events", lambda: held() == {"before", "lost", *ODD} and target.get("before") == b"2, longer")
                took = time.monotonic() - began
                state = [*command, "status", "m", "--json"]
                until(
                    "the loss",
                    lambda: json.loads(subprocess.check_output(state, env=environment))["vanished"] == 1,
                )
            finally:
                service.terminate()
                out, _ = service.communicate(timeout=90)
    assert service.returncode == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["ended"] for record in records if "events" not in record] == ["done"], "nothing was listed again"
    assert sum(record["done"] for record in records if "events" in record) >= len(ODD) + 1
    lines = [json.loads(line) for line in feed.read_bytes().splitlines()]
    names = {one["Records"][0]["s3"]["object"]["key"] for one in lines}
    status = json.loads(subprocess.check_output([*command, "status", "m", "--json"], env=environment))
    assert (status["events"]["malformed"], status["events"]["lag_seconds"]) == (0, 0.0)
    planned = subprocess.run([*command, "plan", "m"], env=environment, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    with capsys.disabled():
        print(
            f"\n{len(lines)} events pushed and mirrored in {took:.1f} s; keys as the gateway writes them: {sorted(names)}"
        )
    source.close()
    target.close()
