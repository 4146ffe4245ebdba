"""A report's document as one HTML page that needs nothing else: no script, no font, no image, no address.

One rule: a page shows names that attackers chose. Every piece of text goes through `_t`, which spells out what cannot be seen
and quotes the rest; the page's policy (CSP) allows one style sheet, by its hash, and nothing besides.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from integrity.record import timestamp
from integrity.reports.digest import KINDS, OTHERS
from integrity.reports.page_style import STYLE
from integrity.reports.told import visible

FINDINGS_SHOWN = 500
ROWS_SHOWN = 200
BINS_SHOWN_MIN = 31
UNFINISHED_SHOWN = 100
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"

_LABELS: Final[Mapping[str, str]] = {
    "done": "done",
    "not-done": "not done",
    "unknown": "outcome unknown",
    "observed": "seen by a feed",
    "unfinished": "begun, no end",
}
_HEADINGS: Final[Mapping[str, str]] = {
    "VERIFIED": "Verified",
    "ANOMALIES": "Anomalies",
    "TAMPERED": "Tampered",
    "INCOMPLETE": "Not all could be read",
}
_TICK = '<path d="M7 12.5l3.4 3.4L17.2 9"/>'
_CROSS = '<path d="M8.4 8.4l7.2 7.2M15.6 8.4l-7.2 7.2"/>'
_MARK = '<path d="M12 6.8v6.4M12 16.6v.1"/>'
_QUERY = '<path d="M9.4 9.6a2.7 2.7 0 1 1 3.9 2.4c-.9.5-1.3 1-1.3 2M12 16.9v.1"/>'
_ICONS: Final[Mapping[str, str]] = {
    "VERIFIED": _TICK,
    "ANOMALIES": _MARK,
    "TAMPERED": _CROSS,
    "INCOMPLETE": _QUERY,
}
_EMPTY = '<p class="none">{}</p>'


def page(document: Mapping[str, Any], *, json_digest: str = "") -> str:
    """The page. `json_digest` is the SHA-256 (hex) of the document's bytes, told at its end."""
    sections = [
        ("timeline", "Timeline", "Timeline", _timeline(document)),
        ("findings", "Findings", "Findings", _findings(document)),
        ("coverage", "Coverage", "What was read, and what not", _coverage(document)),
        ("unfinished", "Without an end", "Operations without a known end", _unfinished(document)),
        ("writers", "Writers", "Writers", _writers(document)),
        (
            "operations",
            "Operations",
            "Operations",
            _tally(document["operations"], "operation") or _EMPTY.format("None in this time."),
        ),
        ("who", "Who", "Who", _tally(document["who"], "who")),
        ("buckets", "Buckets", "Buckets", _tally(document["buckets"], "bucket")),
        ("errors", "Errors", "Errors", _tally(document["errors"], "code", ("not-done",))),
        ("days", "Days", "Days", _tally(document["days"], "day")),
        ("check", "Check", "Check this report yourself", _check(document, json_digest)),
    ]
    sections = [section for section in sections if section[-1]]
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>\n{content}</section>'
        for name, _, title, content in sections
    )
    links = "".join(f'<li><a href="#{name}">{short}</a></li>' for name, short, _, _ in sections)
    word = str(document["verdict"]["word"])
    title = f"{_HEADINGS[word]}: ledger {document['ledger']['name']}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="robots" content="noindex">
<title>{_t(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#verdict">Skip to the verdict</a>
<header>
<p class="eyebrow">Bucketworks ledger report</p>
<h1><bdi>{_t(document["ledger"]["name"])}</bdi></h1>
<p class="origin"><bdi>{_t(document["ledger"]["origin"])}</bdi></p>
</header>
<main>
{_verdict(document)}
{_figures(document)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
{body}
</main>
<footer><p>Report {_t(document["id"])}, made {_when(document["made"]["at"])} by {_t(document["made"]["by"])}.
Times are UTC.</p></footer>
</body>
</html>
"""


def _t(text: object) -> str:
    return escape(visible(str(text)), quote=True)


def _when(text: str) -> str:
    """A record's time as people read it."""
    if not text:
        return "now"
    return f'<time datetime="{_t(text)}">{_t(text[:10])}&nbsp;{_t(text[11:19])}</time>'


def _n(number: int) -> str:
    return f"{number:,}"


def _verdict(document: Mapping[str, Any]) -> str:
    verdict, asked = document["verdict"], document["asked"]
    word = str(verdict["word"])
    since = _when(asked["since"]) if asked["since"] else "the first record"
    until = _when(asked["until"]) if asked["until"] else "the newest checkpoint"
    problems = "".join(
        f'<li id="problem-{i}" class="{_t(problem["kind"])}"><strong>{_t(problem["kind"])}</strong> '
        f"<code><bdi>{_t(problem['where'])}</bdi></code><br>{_t(problem['said'])}"
        + (
            f'<br><span class="quiet">Last known to be right: {_t(problem["known_good"])}</span>'
            if problem["known_good"]
            else ""
        )
        + "</li>"
        for i, problem in enumerate(document["problems"], 1)
    )
    return (
        f'<section id="verdict" class="verdict {word.lower()}" aria-labelledby="word">\n'
        f'<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="10.5"/>{_ICONS[word]}</svg>\n'
        f'<div><h2 id="word">{_HEADINGS[word]}</h2>\n<p class="said">{_t(verdict["said"])}</p>\n'
        f'<p class="span">From {since} to {until}</p>\n'
        + (f'<ul class="problems">{problems}</ul>\n' if problems else "")
        + "</div></section>"
    )


def _figures(document: Mapping[str, Any]) -> str:
    findings = [finding for finding in document["findings"] if not finding["explained"]]
    compared = bool(document["reconciled"])
    figures = [
        ("records read", _n(document["read"]["records"]), "coverage", ""),
        ("operations", _n(sum(document["totals"].values())), "operations", ""),
        ("logs read", _n(sum(row["size"] != 0 for row in document["writers"])), "writers", ""),
        ("findings", _n(len(findings)) if compared else "not asked", "findings", "bad" if findings else ""),
        (
            "without an end",
            _n(len(document["unfinished"]) + document["unfinished_left_out"]),
            "unfinished",
            "warn" if document["unfinished"] else "",
        ),
        ("not done", _n(document["totals"]["not-done"]), "errors" if document["errors"] else "operations", ""),
    ]
    cards = "".join(
        f'<li class="{kind}"><a href="#{anchor}"><b>{value}</b> <span>{name}</span></a></li>'
        for name, value, anchor, kind in figures
    )
    return f'<ul class="figures" aria-label="In figures">{cards}</ul>'


# --- the timeline -----------------------------------------------------------------------------------------------


def _timeline(document: Mapping[str, Any]) -> str:
    line = document["timeline"]
    bins: Sequence[Sequence[int]] = line["bins"]
    if not bins:
        return _EMPTY.format("Nothing happened in this time.")
    step, begins = int(line["step_s"]), int(line["begins"])
    # A single moment is drawn as a bar amid its surroundings, not as a wall.
    pad = max(0, BINS_SHOWN_MIN - len(bins)) // 2
    bins, begins = [[0] * len(KINDS)] * pad + list(bins) + [[0] * len(KINDS)] * pad, begins - pad * step
    highest = max(1, *(sum(counts) for counts in bins))
    width, height = 1000.0, 150.0
    wide = width / len(bins)
    bars = []
    for i, counts in enumerate(bins):
        total = sum(counts)
        if not total:
            continue
        x, y = i * wide, height
        told = f"{_stamp(begins + i * step)}: " + ", ".join(
            f"{_n(count)} {_LABELS[kind]}" for kind, count in zip(KINDS, counts, strict=True) if count
        )
        rects = []
        for kind, count in zip(KINDS, counts, strict=True):
            if count:
                # Few among many must still be seen: no part is lower than two units.
                tall = max(2.0, count / highest * (height - 12))
                y -= tall
                rects.append(
                    f'<rect class="k-{kind}" x="{x + wide * 0.08:.2f}" y="{max(y, 0.0):.2f}" '
                    f'width="{wide * 0.84:.2f}" height="{tall:.2f}"/>'
                )
        bars.append(f"<g><title>{_t(told)}</title>{''.join(rects)}</g>")
    marks = _finding_marks(document["findings"], begins, step, len(bins), wide, height)
    kinds = [kind for i, kind in enumerate(KINDS) if any(counts[i] for counts in bins)]
    legend = "".join(
        f'<li><svg viewBox="0 0 12 12" aria-hidden="true"><rect class="k-{kind}" width="12" height="12" rx="2"/></svg>'
        f"{_LABELS[kind]} <b>{_n(document['totals'][kind])}</b></li>"
        for kind in kinds
    )
    if marks:
        legend += (
            '<li><svg viewBox="0 0 12 12" aria-hidden="true"><rect class="window" width="12" height="12"/>'
            '<rect class="mark" x="5" width="2" height="12"/></svg>a finding lies in here</li>'
        )
    ends = begins + len(bins) * step
    return f"""<figure>
<ul class="legend">{legend}</ul>
<p class="axis top"><span>up to {_n(highest)} in {_step(step)}</span></p>
<svg class="line" viewBox="0 0 {width:.0f} {height:.0f}" preserveAspectRatio="none" role="img"
aria-label="Operations over time, from {_stamp(begins)} to {_stamp(ends)}; the figures are in the tables below">
<g class="grid"><path d="M0 {height / 2:.0f}H{width:.0f}M0 {height - 0.5:.1f}H{width:.0f}M0 12H{width:.0f}"/></g>
{marks}{"".join(bars)}
</svg>
<p class="axis"><span>{_stamp(begins)}</span><span class="mid">{_stamp((begins + ends) // 2)}</span>
<span>{_stamp(ends)}</span></p>
</figure>
"""


def _finding_marks(
    findings: Iterable[Mapping[str, Any]], begins: int, step: int, bins: int, wide: float, height: float
) -> str:
    """A shade over the time window of each finding, and a line where it ends."""
    windows = set()
    for finding in findings:
        if finding["explained"] or not finding["until_s"]:
            continue
        start = (finding["since_s"] - begins) / step if finding["since_s"] else 0.0
        end = (finding["until_s"] - begins) / step
        if end < 0 or start > bins:
            continue
        windows.add((round(max(start, 0.0), 1), round(min(end, float(bins)), 1)))
    return "".join(
        f'<rect class="window" x="{start * wide:.1f}" y="0" width="{max((end - start) * wide, 2.0):.1f}" '
        f'height="{height:.0f}"/><rect class="mark" x="{end * wide - 1:.1f}" y="0" width="2" height="{height:.0f}"/>'
        for start, end in sorted(windows)[:ROWS_SHOWN]
    )


def _stamp(unix_s: int) -> str:
    if unix_s < 0:
        return "1970"
    try:
        return timestamp(unix_s)[:16].replace("T", " ")
    except (ValueError, OverflowError):  # a bin may end after the year 9999
        return "the end of time"


def _step(step_s: int) -> str:
    for size, one in ((604_800, "week"), (86_400, "day"), (3600, "hour"), (60, "minute")):
        if step_s % size == 0:
            count = step_s // size
            return f"a {one}".replace("a hour", "an hour") if count == 1 else f"{count} {one}s"
    return f"{step_s} s"


# --- tables -----------------------------------------------------------------------------------------------------


def _findings(document: Mapping[str, Any]) -> str:
    compared = document["reconciled"]
    if not compared:
        return _EMPTY.format(
            "The bucket was not compared with the ledger for this report. <code>s3integrity reconcile</code> does that; "
            "<code>report --reconcile FILE</code> takes its answer in."
        )
    findings: list[Mapping[str, Any]] = sorted(document["findings"], key=lambda finding: bool(finding["explained"]))
    head = f'<p class="quiet">{_t(compared["said"])}</p>\n'
    if not findings:
        return head + _EMPTY.format("None: the bucket holds what the ledger says.")
    cards = "\n".join(_finding(i, finding) for i, finding in enumerate(findings[:FINDINGS_SHOWN], 1))
    left = len(findings) - FINDINGS_SHOWN + document["findings_left_out"]
    more = (
        f'<p class="quiet">{_n(left)} more are in the JSON document or in the reconciliation.</p>' if left > 0 else ""
    )
    return f'{head}<ol class="cards">\n{cards}\n</ol>{more}\n'


def _finding(i: int, finding: Mapping[str, Any]) -> str:
    facts = [
        (
            "between",
            f"{_when(finding['since']) if finding['since'] else 'the beginning'} and {_when(finding['until'])}"
            if finding["until"]
            else "",
        ),
        ("last legitimate writer", _t(finding["last_writer"])),
        ("seen by feeds", _t("; ".join(finding["candidates"]))),
        ("records", _t(", ".join(finding["records"]))),
        ("version", f"<code><bdi>{_t(finding['version'])}</bdi></code>" if finding["version"] else ""),
        ("explained by", _t(finding["explained"])),
        ("what to do", "" if finding["explained"] else _t(finding["advice"])),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    kind = "explained" if finding["explained"] else "open"
    where = "/".join(part for part in (finding["bucket"], finding["key"]) if part)
    return (
        f'<li id="finding-{i}" class="card {kind}"><h3><a href="#finding-{i}">{_t(finding["code"])}</a></h3>'
        f'<p class="key"><code><bdi>{_t(where)}</bdi></code></p>'
        f"<p>{_t(finding['said'])}</p><dl>{rows}</dl></li>"
    )


def _unfinished(document: Mapping[str, Any]) -> str:
    rows: list[Mapping[str, Any]] = document["unfinished"]
    if not rows:
        return _EMPTY.format("None: every operation that was begun has an outcome.")
    lines = "".join(
        f'<tr id="open-{i}"><td class="when">{_when(row["at"])}</td><td>{_t(row["op"])}</td>'
        f'<td class="key"><code><bdi>{_t("/".join(p for p in (row["bucket"], row["key"]) if p))}</bdi></code></td>'
        f"<td><bdi>{_t(row['who'])}</bdi></td>"
        f"<td>{'outcome unknown' if row['state'] == 'unknown' else 'begun, no end'}</td>"
        f'<td class="when"><code>{_t(row["writer"])}#{row["n"]}</code></td></tr>\n'
        for i, row in enumerate(rows[:UNFINISHED_SHOWN], 1)
    )
    left = len(rows) - UNFINISHED_SHOWN + document["unfinished_left_out"]
    more = (
        f'<p class="quiet">{_n(left)} more; the JSON document has them as far as they were kept.</p>'
        if left > 0
        else ""
    )
    head = ("when", "operation", "key", "who", "state", "record")
    return (
        '<p class="quiet">A process ended, or an answer was lost, between the beginning and the end of these. '
        "Each may have been carried out or not; the youngest may still be going on.</p>\n"
        + _table("Operations without a known end", head, lines)
        + more
    )


def _coverage(document: Mapping[str, Any]) -> str:
    read = document["read"]
    said = (
        f"{_n(read['records'])} records were read and proven against signed checkpoints; {_n(read['counted'])} of them lie "
        f"in the time asked for, {_n(read['housekeeping'])} of those are the ledger's own housekeeping."
    )
    items = "".join(f"<li><bdi>{_t(text)}</bdi></li>" for text in document["not_read"])
    return f"<p>{said}</p>\n<h3>Not read</h3>\n<ul>{items}</ul>\n"


def _writers(document: Mapping[str, Any]) -> str:
    silent = [row["writer"] for row in document["writers"] if row["size"] == 0 and row["state"] == "enrolled"]
    lines = "".join(
        f'<tr><th scope="row"><code><bdi>{_t(row["writer"])}</bdi></code></th><td>{_t(row["state"])}</td>'
        f'<td class="num">{_n(row["size"]) if row["size"] is not None else "-"}</td>'
        f'<td class="num">{_n(row["last"] - row["first"])}</td><td class="num">{_n(row["records"])}</td>'
        f'<td class="when">{_when(row["newest_at"]) if row["newest_at"] else "-"}</td>'
        f'<td class="key"><code>{_t(row["root"][:16])}</code> {_t(row["said"])}</td></tr>\n'
        for row in document["writers"]
        if row["writer"] not in silent
    )
    head = ("writer", "state", "size", "read", "in time", "newest record", "root, remarks")
    more = f'<p class="quiet">Enrolled, and nothing was published yet: {_t(", ".join(silent))}.</p>' if silent else ""
    return (_table("Writers", head, lines) if lines else _EMPTY.format("No writer is enrolled.")) + more


def _tally(rows: Sequence[Mapping[str, Any]], name: str, kinds: Sequence[str] = KINDS) -> str:
    if not rows:
        return ""
    used = [kind for kind in kinds if any(row[kind] for row in rows)] or list(kinds[:1])
    highest = max(1, *(sum(int(row[kind]) for kind in used) for row in rows))
    lines = "".join(
        f'<tr><th scope="row"><bdi>{_t(row["name"])}</bdi></th><td class="bar">{_bar(row, used, highest)}</td>'
        + "".join(f'<td class="num">{_n(row[kind]) if row[kind] else "·"}</td>' for kind in used)
        + "</tr>\n"
        for row in rows[:ROWS_SHOWN]
    )
    left = len(rows) - ROWS_SHOWN
    others = any(row["name"] == OTHERS for row in rows)
    more = f'<p class="quiet">{_n(left)} more rows are in the JSON document.</p>' if left > 0 else ""
    more += f'<p class="quiet">{OTHERS} are further names, counted together.</p>' if others else ""
    return _table(name.capitalize(), (name, "", *(_LABELS[kind] for kind in used)), lines) + more


def _bar(row: Mapping[str, Any], kinds: Sequence[str], highest: int) -> str:
    x, rects = 0.0, []
    for kind in kinds:
        if row[kind]:
            wide = max(0.7, int(row[kind]) / highest * 100)
            rects.append(f'<rect class="k-{kind}" x="{x:.2f}" width="{wide:.2f}" height="8"/>')
            x += wide
    return f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'


def _table(name: str, headings: Sequence[str], lines: str) -> str:
    head = "".join(_heading(text) for text in headings)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_t(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></div>\n"
    )


def _heading(text: str) -> str:
    if not text:
        return "<td></td>"
    counted = text in _LABELS.values() or text in ("size", "read", "in time")
    return f'<th scope="col" class="{"num" if counted else "text"}">{_t(text)}</th>'


def _check(document: Mapping[str, Any], json_digest: str) -> str:
    number, vkey = _t(document["id"]), _t(document["ledger"]["vkey"])
    digest = f"<p>SHA-256 of <code>{number}.json</code>:<br><code>{_t(json_digest)}</code></p>\n" if json_digest else ""
    return f"""<p>This page is a picture of <code>{number}.json</code>. <code>{number}.note</code> has the SHA-256 of both
and is signed. With the ledger's public key, which you have from whoever runs the ledger and not from here, this checks them
without any network:</p>
<pre><code>s3integrity report check {number}.note --vkey VKEY</code></pre>
{digest}<p>The key by which this report was verified:<br><code>{vkey}</code></p>
<p>To verify the ledger anew: <code>s3integrity verify {_t(document["ledger"]["name"])} --full</code></p>
"""
