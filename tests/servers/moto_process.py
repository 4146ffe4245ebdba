"""moto's server as `moto.server` runs it, but for one thing: requests are answered one after the other.

The emulator looks whether an object is there and then writes it, so that two racing writers may both be told that they won;
and it reads an object for its ETag and for its body through one file position, so that two readers may be given bytes that
were never there. No server worth testing against does that; what real races look like is shown with `radosgw`.
"""

import argparse
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

Environment = dict[str, Any]


def one_by_one(app: Callable[[Environment, Any], Iterable[bytes]]) -> Callable[[Environment, Any], Iterable[bytes]]:
    lock = threading.Lock()

    def serve(environment: Environment, start_response: Any) -> Iterable[bytes]:
        with lock:
            return list(app(environment, start_response))

    return serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", port, one_by_one(application), threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
