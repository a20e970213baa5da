"""One HTML file with everything of a table: figures, findings, plots, videos. Works offline.

Style, plots and videos are inside the file; there are no scripts.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hpdm_core.reports.findings import judge
from hpdm_core.reports.plots import plots
from hpdm_core.reports.results import Results
from hpdm_core.reports.tables import footnotes, grid, notices, provenance, turned

CSS = """
:root{--ink:#1b1f24;--dim:#667085;--line:#d8dde3;--paper:#9aa4b2;--ours:#2f6fb0;--bg:#fff;
--soft:#f5f7f9;--warn:#fff6dd;--good:#1a7f4b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--dim:#98a2b3;--line:#343b45;--paper:#6b7686;
--ours:#6aa5e0;--bg:#14181d;--soft:#1c2229;--warn:#3a3118;--good:#5cc78d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1560px;padding:20px min(3vw,40px) 60px;
background:var(--bg);color:var(--ink);overflow-wrap:break-word;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:.2em 0}h2{font-size:1.1rem;margin:2em 0 .5em}
.dim{color:var(--dim);font-weight:normal}.notice{background:var(--warn);padding:10px 14px;
border-radius:6px;margin:10px 0}
body>p,ul.findings,dl{max-width:80em}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
.hint{display:none;color:var(--dim);font-size:.85rem;margin:4px 0}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums}
td:first-child,thead tr:first-child th:first-child{text-align:left;position:sticky;left:0;
background:var(--bg);min-width:8.5em}
tr:last-child td{border-bottom:0}thead th{background:var(--soft);font-weight:600}
thead tr:first-child th:first-child{background:var(--soft)}
thead th[colspan="2"],th.theirs,td.theirs{border-left:1px solid var(--line)}
td.theirs{color:var(--dim)}td small{display:block;color:var(--dim);font-weight:normal}
th.ours{font-weight:normal;font-size:.8rem;min-width:9em}td.good{color:var(--good);font-weight:600}
.base td{font-weight:600}
ul.findings{list-style:none;padding:0}ul.findings li{padding:8px 0;border-bottom:1px solid
var(--line)}
.verdict{display:inline-block;min-width:7.5em;font-weight:600}
figure{margin:0 0 18px}figure .wide{border:0}figcaption{font-weight:600;margin-bottom:4px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:8px 28px}
svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:var(--ink)}svg .head,svg .tick{fill:var(--dim)}
svg .middle{text-anchor:middle}svg .end{text-anchor:end}
svg .paper{fill:var(--paper)}svg .ours{fill:var(--ours)}
svg .spread{stroke:var(--ink);fill:none;stroke-width:1}
svg .axis{stroke:var(--dim);fill:none}svg .grid{stroke:var(--line);fill:none}
svg .line{fill:none;stroke-width:2}svg .thin{stroke-width:1}
svg .c0{stroke:#2f6fb0}svg .c1{stroke:#c2571a}svg .c2{stroke:#3c8d40}svg .c3{stroke:#8a4fb5}
svg .c4{stroke:#b8860b}svg .c5{stroke:#c23b5e}
svg .dot{stroke-width:2;fill:var(--bg)}svg text.label{stroke:none}
.videos{display:grid;gap:10px}.strip{display:grid;grid-template-columns:9em 1fr;gap:10px;
align-items:center;border-bottom:1px solid var(--line);padding-bottom:10px}
.strip>div:last-child{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:6px}
.strip figure{margin:0}.strip figcaption{font-weight:normal;font-size:.7rem;color:var(--dim);
margin:2px 0 0}
video{width:100%;display:block;border-radius:4px;background:#000;image-rendering:pixelated}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;font-size:.9rem}
dt{font-weight:600}dd{margin:0;color:var(--dim)}
pre{overflow-x:auto;background:var(--soft);padding:10px;border-radius:6px;font-size:.75rem}
@media(max-width:640px){.hint{display:block}.strip{grid-template-columns:1fr}th,td{padding:5px 7px}
dl{grid-template-columns:1fr}dd{margin-bottom:6px}
td:first-child,thead tr:first-child th:first-child{min-width:6.5em;max-width:8em}}
"""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video of the report.

    Args:
        row: key of the row that drew it.
        caption: what it shows and from which seed.
        path: MP4 file.
    """

    row: str
    caption: str
    path: Path


def report(results: Results, clips: Sequence[Clip], *, plan: dict) -> str:
    """Return the report as one HTML text.

    Args:
        results: what was measured.
        clips: videos; those of a row stand side by side in the order given.
        plan: what the rows take, for the record.
    """
    table = results.table
    body = [
        f"<h1>{escape(table.title)}</h1>",
        f'<p class="dim">{escape(table.about)}</p>',
        f"<p>Scale <b>{escape(results.scale)}</b>: "
        f"{escape(table.scales[results.scale].about)}.</p>",
        *(f'<p class="notice">{escape(text)}</p>' for text in notices(results)),
        _table(results),
        _findings(results),
        _section("Plots", '<div class="plots">' + "".join(plots(results)) + "</div>")
        if table.plot != "none"
        else "",
        _videos(results, clips),
        _columns(results),
        _section("How it was made", _made(results, plan)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(table.title)} ({escape(results.scale)})</title>"
        f"<style>{CSS}</style></head><body>\n" + "\n".join(part for part in body if part) +
        "\n</body></html>\n"
    )  # fmt: skip


def _table(results: Results) -> str:
    laid, both = grid(results), results.has_paper
    heads = [f"<tr><th rowspan={2 if both else 1}>setup</th>"]
    second = "<tr>"
    for theirs, ours in laid.heads:
        heads.append(f"<th colspan={2 if both else 1}>{escape(theirs)}</th>")
        name = "here" if ours == theirs else f"here: {ours}"
        second += f'<th class="theirs">paper</th><th class="ours">{escape(name)}</th>'
    second += "</tr>"
    rows = []
    for title, base, shown_cells in laid.lines:
        kind = ' class="base"' if base else ""
        cells = [f"<tr{kind}><td>{escape(title)}</td>"]
        for shown in shown_cells:
            good = ' class="good"' if shown.good else ""
            small = f"<small>{escape(shown.difference)}</small>" if shown.difference else ""
            if both:
                cells.append(f'<td class="theirs">{escape(shown.paper)}</td>')
            cells.append(f"<td{good}>{escape(shown.ours)}{small}</td>")
        rows.append("".join(cells) + "</tr>")
    return (
        f'<p class="hint">Scroll the table sideways: {(1 + both) * len(laid.heads)} columns →</p>'
        f'<div class="wide"><table><thead>{"".join(heads)}</tr>{second if both else ""}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + "".join(f'<p class="dim">{escape(text)}</p>' for text in footnotes(results))
    )


def _findings(results: Results) -> str:
    items = [
        f'<li><span class="verdict">{escape(item.verdict)}</span> {escape(item.finding.text)}'
        f'<br><span class="dim">here: {escape(item.reason)} · paper: {escape(item.paper)}</span>'
        "</li>"
        for item in judge(results)
    ]
    if not items:
        return ""
    words = (
        '<p class="dim">Rows are compared seed by seed; a difference counts where its mean is '
        "beyond what the seeds scatter by chance. In brackets: Student's 90% interval over the "
        "seeds' differences, which must lie on one side.</p>"
    )
    return _section("Findings of the paper", f'<ul class="findings">{"".join(items)}</ul>{words}')


def _videos(results: Results, clips: Sequence[Clip]) -> str:
    if not clips:
        return ""
    strips = []
    for row in results.table.rows:
        own = [clip for clip in clips if clip.row == row.key]
        if own:
            figures = "".join(
                f"<figure>{_video(clip.path)}<figcaption>{escape(clip.caption)}</figcaption>"
                "</figure>"
                for clip in own
            )
            strips.append(
                f'<div class="strip"><div><b>{escape(row.title)}</b>'
                f'<br><span class="dim">{escape(row.about)}</span></div><div>{figures}</div></div>'
            )
    words = '<p class="dim">Columns share seed and class; rows differ by the setup alone.</p>'
    return _section("Videos", f'{words}<div class="videos">{"".join(strips)}</div>')


def _video(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video src="data:video/mp4;base64,{data}" autoplay muted loop playsinline></video>'


def _columns(results: Results) -> str:
    about = "".join(
        f"<dt>{escape(column.heading)}</dt><dd>{escape(column.about)}</dd>"
        for column in results.table.columns
    )
    place = "rows" if turned(results) else "columns"
    return _section(f"What the {place} mean", f"<dl>{about}</dl>")


def _made(results: Results, plan: dict) -> str:
    lines = [*provenance(results), *results.table.notes]
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    plan_text = escape(json.dumps(plan, indent=1, ensure_ascii=False))
    short = [_short(line) for line in results.lines]
    rows = escape(json.dumps(short, indent=1, ensure_ascii=False))
    return (
        f"{text}<details><summary>The plan</summary><pre>{plan_text}</pre></details>"
        f"<details><summary>Each row and seed</summary><pre>{rows}</pre></details>"
    )


def _short(line: dict) -> dict:
    """Leave out the long parts of a line, which rows.jsonl has."""
    return {key: value for key, value in line.items() if key not in ("details", "videos")}


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}"
