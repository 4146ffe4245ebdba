"""docs/providers.md: what the table of presets says of a provider, as its section must have it."""

from s3core.endpoint import Preset

_TOOLS = {
    "yes": ("yes", "yes", "yes", "yes", "yes"),
    "probe": ("ask the doctor", "yes", "ask the doctor", "files: yes; disks: ask the doctor", "ask the doctor"),
    "no": (
        "one host only, and you say so (`unfenced`)",
        "one process at a time",
        "no: a ledger needs PUTs that create once",
        "files: yes; disks: no",
        "one console host only",
    ),
}
"""By whether a PUT with If-None-Match is honoured: s3block, cowsync, s3integrity, pve-s3, s3-envctl."""


def facts(preset: Preset) -> str:
    """The two tables of a provider's section, the quirks between them."""
    prices = preset.prices
    amounts = (prices.per_1000_put, prices.per_1000_get, prices.per_gib_month, prices.per_gib_egress)
    shown = "; ".join(
        f"{amount:g} {what}"
        for amount, what in zip(
            amounts, ("per 1,000 PUTs", "per 1,000 GETs", "per GiB and month", "per GiB read"), strict=True
        )
        if amount
    )
    known = {"yes": "yes", "no": "no", "probe": "not known; each tool tries"}
    rows = [
        ("address", f"`{preset.url}`" if preset.url else "yours: `--url`"),
        (
            "region, where you name none",
            f"`{preset.region}`" + (": the server is asked" if preset.region == "auto" else ""),
        ),
        (
            "bucket in the",
            {"path": "path", "virtual": "host name", "auto": "path or host name, as the URL has it"}[preset.addressing],
        ),
        ("PUT if absent / if unchanged", f"{known[preset.if_none_match]} / {known[preset.if_match]}"),
        ("the same in a bucket with versions", known[preset.versioned_conditions]),
        ("prices for estimates", f"{shown} ({prices.currency})" if shown else "none; set `[endpoint.NAME.prices]`"),
    ]
    lines = ["| what | as the preset believes |", "| --- | --- |", *(f"| {what} | {told} |" for what, told in rows), ""]
    if preset.notes:
        lines += [*(f"- {note[:1].upper()}{note[1:]}." for note in preset.notes), ""]
    lines += ["| s3block | cowsync | s3integrity | pve-s3 | s3-envctl |", "| --- | --- | --- | --- | --- |"]
    lines.append(f"| {' | '.join(_TOOLS[preset.if_none_match])} |")
    return "\n".join(lines) + "\n"
