"""Calls one function in the guest: `python3 -m tests.guest.inside.call MODULE:FUNCTION ARGUMENTS`, both ways as JSON.

One rule: what is returned is the last line; whatever else is printed is for who looks for the cause of a failure.
"""

import importlib
import json
import sys

ANSWER = "\x02answer "
"""Before the result, on a line of its own."""


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    function = getattr(importlib.import_module(module), name)
    result = function(**json.loads(sys.argv[2]))
    print(f"{ANSWER}{json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
