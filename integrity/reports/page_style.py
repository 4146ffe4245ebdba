"""The style sheet of a report's page: light and dark, screen and paper, 360 px and wide.

One rule: no address stands in it and nothing outside is needed. Text has at least 4.5:1 against what is behind it, marks and
borders that carry meaning 3:1 (WCAG 2.2 AA); a test measures it in a browser.
"""

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --paper: #f5f6f8; --card: #ffffff; --ink: #17202b; --quiet: #526070; --line: #dbe0e6; --link: #0b57a8;
  --ok: #0d6b40; --ok-paper: #e7f5ed; --warn: #8a4b00; --warn-paper: #fff4e0; --bad: #b3151d; --bad-paper: #fdecec;
  --odd: #3f4d5f; --odd-paper: #e9edf2;
  --k-done: #2f8f63; --k-not-done: #c26a00; --k-unknown: #8550c7; --k-observed: #3f7fd0; --k-unfinished: #cf2f37;
  --window: rgba(207, 47, 55, .13);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #10151b; --card: #181f27; --ink: #e8ecf1; --quiet: #a3afbd; --line: #2d3743; --link: #84bbff;
    --ok: #6fd6a3; --ok-paper: #12291f; --warn: #f5b95f; --warn-paper: #2d220f; --bad: #ff8d90; --bad-paper: #331719;
    --odd: #bcc8d6; --odd-paper: #202a35;
    --k-done: #3fa878; --k-not-done: #d98a2b; --k-unknown: #a986e0; --k-observed: #5b98e6; --k-unfinished: #f0575f;
    --window: rgba(240, 87, 95, .2);
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.2rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 66rem; padding: 2.2rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
h1, h2, h3, p, ul, ol, dl, dd, figure { margin: 0; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; letter-spacing: -.02em; }
h2 { font-size: 1.2rem; line-height: 1.3; letter-spacing: -.01em; margin-bottom: .7rem; }
h3 { font-size: 1rem; margin: .9rem 0 .3rem; }
a { color: var(--link); text-underline-offset: .15em; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 3px; }
code { font: .875em/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: .6rem 0; padding: .7rem .9rem; background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  white-space: pre-wrap; }
.eyebrow { color: var(--quiet); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; font-weight: 600; }
.origin, .quiet, .span, footer { color: var(--quiet); }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--card); padding: .4rem .7rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.35rem;
  margin-top: 1.1rem; }
section p + p { margin-top: .5rem; }
section ul:not([class]) { padding-left: 1.2rem; }

.verdict { display: flex; gap: 1.1rem; align-items: flex-start; margin-top: 1.3rem; border-width: 1px 1px 1px 6px; }
.verdict > div { min-width: 0; flex: 1; }
.verdict h2 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .15rem; }
.verdict .said { font-size: 1.08rem; }
.verdict .icon { width: 3.2rem; flex: none; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round;
  stroke-linejoin: round; }
.verdict.verified { background: var(--ok-paper); border-color: var(--ok); }
.verdict.verified h2, .verdict.verified .icon { color: var(--ok); }
.verdict.anomalies { background: var(--warn-paper); border-color: var(--warn); }
.verdict.anomalies h2, .verdict.anomalies .icon { color: var(--warn); }
.verdict.tampered { background: var(--bad-paper); border-color: var(--bad); }
.verdict.tampered h2, .verdict.tampered .icon { color: var(--bad); }
.verdict.incomplete { background: var(--odd-paper); border-color: var(--odd); }
.verdict.incomplete h2, .verdict.incomplete .icon { color: var(--odd); }
.problems { list-style: none; padding: 0; margin-top: .9rem; display: grid; grid-template-columns: minmax(0, 1fr);
  gap: .6rem; }
.problems li { border-top: 1px solid var(--line); padding-top: .6rem; }
.problems strong { text-transform: uppercase; font-size: .78rem; letter-spacing: .05em; margin-right: .3rem; }
.problems .tampered strong { color: var(--bad); }
.problems .anomaly strong { color: var(--warn); }

.figures { list-style: none; padding: 0; margin-top: 1.1rem; display: grid; gap: .7rem;
  grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); }
.figures a { display: block; height: 100%; padding: .75rem .95rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; color: inherit; text-decoration: none; }
.figures a:hover { border-color: var(--link); }
.figures b { display: block; font-size: 1.45rem; line-height: 1.25; letter-spacing: -.01em; font-weight: 650; }
.figures span { color: var(--quiet); font-size: .9rem; }
.figures .bad b { color: var(--bad); }
.figures .warn b { color: var(--warn); }

nav { margin-top: 1.1rem; position: sticky; top: 0; background: var(--paper); border-bottom: 1px solid var(--line);
  z-index: 1; }
nav ul { display: flex; gap: .2rem 1.35rem; list-style: none; padding: .55rem 0; overflow-x: auto; white-space: nowrap;
  scrollbar-width: thin; }
nav a { text-decoration: none; font-size: .92rem; }
nav a:hover { text-decoration: underline; }

.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; }
.legend svg { width: .8rem; height: .8rem; margin-right: .4rem; vertical-align: -.06em; }
.line { display: block; width: 100%; height: 11rem; }
.grid path { stroke: var(--line); stroke-width: 1; fill: none; vector-effect: non-scaling-stroke; }
.axis { display: flex; justify-content: space-between; gap: 1rem; color: var(--quiet); font-size: .82rem; padding-top: .3rem; }
.axis.top { padding: .7rem 0 .2rem; }
.k-done { fill: var(--k-done); } .k-not-done { fill: var(--k-not-done); } .k-unknown { fill: var(--k-unknown); }
.k-observed { fill: var(--k-observed); } .k-unfinished { fill: var(--k-unfinished); }
.window { fill: var(--window); } .mark { fill: var(--k-unfinished); }
.line g:hover rect { opacity: .75; }

.cards { list-style: none; padding: 0; display: grid; grid-template-columns: minmax(0, 1fr); gap: .7rem; margin-top: .8rem; }
.card { border: 1px solid var(--line); border-left: 4px solid var(--bad); border-radius: 8px; padding: .8rem 1rem; }
.card.explained { border-left-color: var(--quiet); }
.card h3 { margin: 0; font-size: .95rem; letter-spacing: .01em; }
.card h3 a { color: var(--bad); text-decoration: none; }
.card.explained h3 a { color: var(--quiet); }
.card h3 a:hover { text-decoration: underline; }
.card dl { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin-top: .5rem; font-size: .92rem; }
.card dt { color: var(--quiet); display: inline; } .card dd { display: inline; margin-left: .35rem; }
.card:target, tr:target { outline: 2px solid var(--link); outline-offset: 2px; }

.scroll { overflow-x: auto; margin-top: .7rem; }
.scroll + p { margin-top: .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
td { max-width: 24rem; overflow-wrap: break-word; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--quiet); font-weight: 600; font-size: .84rem; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 11rem; }
.num, .when { white-space: nowrap; }
th.num, td.num { text-align: right; }
td.key { min-width: 13rem; }
.bar { width: 100%; min-width: 6rem; } .bar svg { width: 100%; height: .55rem; display: block; margin-top: .5rem; }
.none { color: var(--quiet); }
footer { margin-top: 1.4rem; font-size: .88rem; }

@media (max-width: 40rem) {
  body { padding: 1.3rem .8rem 2rem; }
  section { padding: 1rem .95rem; }
  .verdict { flex-direction: column; gap: .5rem; }
  .verdict .icon { width: 2.4rem; }
  .axis .mid { display: none; }
  tbody th { min-width: 8rem; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --quiet: #444; --line: #bbb; --link: #000;
    --ok: #0d6b40; --ok-paper: #fff; --warn: #8a4b00; --warn-paper: #fff; --bad: #b3151d; --bad-paper: #fff;
    --odd: #3f4d5f; --odd-paper: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  section, .figures a { border-radius: 0; }
  .card, tr, figure, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
