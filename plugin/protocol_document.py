"""docs/protocol/pve-socket.md, drawn from the tables of `plugin.protocol` and `plugin.errors`.

One rule: what a method takes, gives and may last stands in its row of the table and nowhere else.
"""

from typing import Final

from plugin.errors import CODES
from plugin.protocol import HEARTBEAT_S, LINE_BYTES_MAX, METHODS, SOCKET_NAME, VERSION
from s3core.quantities import shown_duration, shown_size

_HEAD: Final = f"""\
# The socket of the Proxmox VE core

<!-- Drawn from plugin/protocol.py and plugin/errors.py by `make docs`; a test compares. -->

`pve-s3 serve` listens at `run_dir/{SOCKET_NAME}` (`/run/bucketworks/{SOCKET_NAME}`, mode 0600: root alone). Version {VERSION}.

```
-> {{"v":1,"id":"7f","method":"list","storage":"s3","args":{{"vmid":100}},"deadline_ms":10000}}
<- {{"id":"7f","log":"fetching debian.iso: 120 MiB of 650 MiB"}}
<- {{"id":"7f","result":{{...}}}}
<- {{"id":"7f","error":{{"code":"denied","message":"...","hint":"...","retryable":false}}}}
```

- A request is one JSON object on one line, {shown_size(LINE_BYTES_MAX)} at most. A connection carries one call; what
  follows its line is not read. Text is UTF-8.
- Any number of lines with `log` may come before the one with `result` or `error`, after which the connection ends.
- `deadline_ms` counts from when the line arrived; left out, it is the method's own; 0 is no limit. When it is over and the
  store has not answered, the answer is `deadline`. What was asked of the store may be done all the same; a list tells.
- A call without a limit says something at least each {shown_duration(HEARTBEAT_S)} while it works. It ends when the caller
  hangs up; what it had fetched is kept for the next one.
- Numbers may come as text. Arguments that a method does not know are passed over. A caller must do so with members of a result.
- One storage has at most 64 calls under way that may ask its store; one more is told `busy` at once. So a store that hangs
  delays no other storage, and `ping`, `status` and `path` never.

## Methods

| method | limit | arguments | result | what for |
| --- | --- | --- | --- | --- |
"""

_ERRORS: Final = """
## Errors

`message` and `hint` are one line each, fit for a task's log. `retryable`: the same call may succeed later.

| code | meaning |
| --- | --- |
"""


def socket_markdown() -> str:
    """The whole document."""
    rows = []
    for one in METHODS:
        limit = shown_duration(one.deadline_ms / 1000) if one.deadline_ms else "none"
        rows.append(f"| `{one.name}` | {limit} | {one.arguments or '-'} | {one.result or '-'} | {one.about} |\n")
    errors = [f"| `{code}` | {meaning} |\n" for code, meaning in CODES.items()]
    return _HEAD + "".join(rows) + _ERRORS + "".join(errors)
