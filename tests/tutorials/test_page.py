"""The format of pages that are run: what is read of them, and what is refused."""

import pytest

from tests.tutorials.page import Bucket, Unreadable, missing, parse

PAGE = """\
# Title
<!-- buckets: disks, copies versioned -->
<!-- needs: qemu-img, iscsi-ls -->

```sh
echo one
echo two
```

It prints:

```text
one
```
<!-- expect: tw -->

<!-- not run: needs a cluster -->
```sh
pvesm status
```
```text
offsite active
```

```toml
size = 1
```
"""


def test_blocks_with_lines_reasons_and_what_they_print() -> None:
    page = parse(PAGE)
    assert [(block.language, block.line) for block in page.blocks] == [
        ("sh", 6),
        ("text", 13),
        ("sh", 19),
        ("text", 22),
        ("toml", 26),
    ]
    first, second = page.run[0], page.left_out[0]
    assert len(page.run) == len(page.left_out) == 1
    assert (first.text, first.lines, first.parts) == ("echo one\necho two\n", ["one"], ["tw"])
    assert (second.not_run, second.lines) == ("needs a cluster", ["offsite active"])
    assert page.buckets == [Bucket("disks"), Bucket("copies", versioned=True)]
    assert page.needs == ["qemu-img", "iscsi-ls"]


def test_output_before_any_command_is_a_picture() -> None:
    page = parse("```text\n--->\n```\n```sh\ntrue\n```\n")
    assert page.run[0].lines == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```sh\necho\n", "1: the block is not closed"),
        ("<!-- not run: because -->\nText\n```sh\n```\n", "2: `not run` must stand right before"),
        ("<!-- not run: because -->\n```toml\n```\n", "2: `not run` stands before a block of toml"),
        ("<!-- not run: because -->\n", "1: `not run` stands before no block"),
        ("<!-- not run: -->\n```sh\n```\n", "1: `not run:` says nothing"),
        ("<!-- expect: x -->\n", "1: `expect` stands before any block"),
        ("<!-- buckets: a encrypted -->\n", "1: a bucket is NAME or NAME versioned"),
    ],
)
def test_what_breaks_the_format_is_refused(text: str, said: str) -> None:
    with pytest.raises(Unreadable) as refused:
        parse(text)
    assert str(refused.value).startswith(said)


def test_other_comments_are_left_alone() -> None:
    assert parse("<!-- drawn: by make docs -->\n").blocks == []


@pytest.mark.parametrize(
    ("lines", "parts", "absent"),
    [
        (["made vm1", "serving"], [], []),
        (["serving", "made vm1"], [], ["made vm1"]),
        (["made …", "…", "… at 10.0.0.…"], [], []),
        (["made vm"], [], ["made vm"]),
        ([], ["vm1", "10.…:3260"], []),
        ([], ["vm2"], ["vm2"]),
    ],
)
def test_lines_in_order_and_parts_anywhere(lines: list[str], parts: list[str], absent: list[str]) -> None:
    assert missing("made   vm1  \nserving\n  vm1 at 10.0.0.1:3260\n", lines, parts) == absent
