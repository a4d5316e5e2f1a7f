"""The look of report.html, light and dark, on screen and on paper."""

STYLE = """
:root {
  --paper: #ffffff; --ink: #1d2125; --quiet: #5a6570; --line: #dfe3e7; --stripe: #f6f8fa;
  --accent: #b34700; --note: #fff6e5; --note-line: #e0a030; --code: #f3f5f7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15191d; --ink: #e3e7ea; --quiet: #98a3ad; --line: #323a42; --stripe: #1b2026;
    --accent: #ff9a5c; --note: #2c2415; --note-line: #b0802c; --code: #1f252b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
header { border-bottom: 2px solid var(--line); padding-bottom: 1rem; }
.subtitle { color: var(--quiet); margin: 0 0 .6rem; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: .6rem 0 0; padding: 0; list-style: none; }
.facts li { font-weight: 600; font-variant-numeric: tabular-nums; }
.facts .what { color: var(--quiet); font-weight: 400; }
section { margin-top: 2.2rem; }
p { margin: 0 0 .8rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin-bottom: 1.3rem; }
table { border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--quiet); font-size: .88rem; padding-top: .5rem; }
th, td { padding: .38rem .9rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; max-width: 34rem; }
th { white-space: nowrap; color: var(--quiet); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 700; color: var(--accent); }
figure { margin: 0 0 1.6rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .4rem; max-width: 48rem; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem; margin: 0;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: .9rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.note { background: var(--note); border-left: 4px solid var(--note-line); border-radius: 0 6px 6px 0;
  padding: .6rem .9rem; }
summary { cursor: pointer; }
summary h2 { display: inline-block; margin: 0 0 .5rem .2rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--quiet);
  font-size: .9rem; }
@media print {
  main { max-width: none; padding: 0; }
  figure, table, pre { break-inside: avoid; }
}
"""
