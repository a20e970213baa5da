"""The report: one file that asks for nothing, well formed, and alive in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hpdm_core.data.video_io import write_mp4
from hpdm_core.reports.ablations import load_table
from hpdm_core.reports.html import Clip, report
from hpdm_core.reports.plots import pareto_front, plots, spread_out
from hpdm_core.reports.results import collect
from tests.unit.reports.made_up import line, results_of, score

TABLE = load_table("table3")
COLUMNS = {
    "level0": {"default": [10.0, 12.0, 11.0], "shallow": [22.0, 24.0, 23.0]},
    "level2": {"default": [10.0, 12.0, 11.0], "shallow": [22.0, 24.0, 23.0]},
}
VOID = {"meta", "link", "br", "rect", "path", "circle", "hr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390

# Plays the videos, then measures the report inside a frame as wide as a phone.
PROBE = """
<script>
const text = %s;
const wait = (ready) => new Promise((done) => {
  const timer = setInterval(() => { if (ready()) { clearInterval(timer); done(true); } }, 20);
  setTimeout(() => { clearInterval(timer); done(false); }, 5000);
});
addEventListener('load', async () => {
  const frame = document.createElement('iframe');
  frame.style = 'width:%dpx;height:800px;border:0';
  frame.srcdoc = text;
  document.body.append(frame);
  await new Promise((done) => frame.addEventListener('load', done));
  const inner = frame.contentDocument;
  const videos = [...inner.querySelectorAll('video')];
  const played = await Promise.all(videos.map((video) => wait(() => video.currentTime > 0)));
  document.documentElement.setAttribute('data-played', played.filter(Boolean).length);
  document.documentElement.setAttribute('data-width', inner.documentElement.scrollWidth);
  document.documentElement.setAttribute('data-font', getComputedStyle(inner.body).fontSize);
});
</script>
"""


class Reader(HTMLParser):
    """Collects addresses, and checks that what opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:  # <rect/> opens and closes at once
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """A report of two rows with a video each."""
    folder, clips = tmp_path_factory.mktemp("report"), []
    for row in ("shallow", "default"):
        frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
        write_mp4(folder / f"{row}.mp4", iter(frames), 8)
        clips.append(Clip(row=row, caption="circle, seed 0", path=folder / f"{row}.mp4"))
    return report(results_of(TABLE, COLUMNS), clips, plan={"hours": 1})


def test_the_report_asks_for_nothing_from_outside(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.addresses
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "script" not in reader.tags
    assert not re.search(r"https?://|@import|url\(", page)
    assert reader.tags.count("video") == 2


def test_the_report_has_figures_findings_and_notices(page):
    assert "Fréchet distance on bundled features, 4 videos of 4x8x8" in page
    assert "must not be set beside" in page
    assert page.count('class="verdict"') == len(TABLE.findings)
    assert page.count("<svg") == len(TABLE.columns)
    assert 'class="good"' not in page


def test_what_is_shown_is_escaped():
    results = results_of(TABLE, COLUMNS)
    text = report(results, [], plan={"note": "<script>alert(1)</script>"})
    assert "<script" not in text


def test_bars_grow_with_the_figures():
    figure = plots(results_of(TABLE, COLUMNS))[2]
    bars = [float(width) for width in re.findall(r'class="ours"[^>]* width="([\d.]+)"', figure)]
    assert bars[0] / bars[1] == pytest.approx(23 / 11, rel=0.02)  # shallow over default
    assert figure.count('class="spread"') == 2


def test_lines_fall_where_scores_fall():
    table = load_table("fig8")
    counts = (32, 64, 128, 256, 384)
    lines = [
        line(row, 0, {f"n{i + 1}": score(top / (i + 1), fakes=n) for i, n in enumerate(counts)})
        for row, top in (("quarter", 9.0), ("end", 3.0))
    ]
    keys = {entry["key"] for entry in lines}
    figure = plots(collect(table, lines, name="fig8", scale="tiny", keys=keys))[0]
    paths = re.findall(r'class="line c\d" d="M([^"]+)"', figure)
    drawn = [[tuple(map(float, p.split())) for p in path.split("L")] for path in paths]
    assert [len(path) for path in drawn] == [5, 5]
    for path in drawn:
        assert [x for x, _ in path] == sorted(x for x, _ in path)
        assert [y for _, y in path] == sorted(y for _, y in path)  # down the page: smaller
    assert all(high[1] < low[1] for high, low in zip(*drawn, strict=True))


def test_lines_leave_out_columns_of_another_measure():
    table = load_table("fig8")

    def drawn(**more: dict) -> str:
        figures = {"n1": score(9.0, fakes=8), "n5": score(6.0, fakes=128)} | more
        lines = [line("end", 0, figures)]
        return plots(collect(table, lines, name="fig8", scale="tiny", keys={"end/0"}))[0]

    kernel = score(0.02, "kernel distance on bundled features", fakes=64)
    assert drawn(k5=kernel) == drawn()
    assert drawn(n4=score(7.0, fakes=64)) != drawn()


@pytest.mark.parametrize("seed", range(5))
def test_labels_never_overlap_nor_leave_the_plot(seed):
    rng = np.random.default_rng(seed)
    heights = {k: float(h) for k, h in enumerate(rng.choice([5.0, 20.0, 21.0, 190.0], 12))}
    placed = spread_out(heights, least=15, top=10, bottom=200)
    by_place = sorted(placed, key=placed.get)
    assert [heights[k] for k in by_place] == sorted(heights.values())
    values = [placed[k] for k in by_place]
    assert values[0] >= 10
    assert values[-1] <= 200
    assert min(b - a for a, b in pairwise(values)) >= 15
    far = {"a": 30.0, "b": 90.0}
    assert spread_out(far, least=15, top=10, bottom=200) == far


def test_nothing_measured_is_no_plot():
    table = load_table("fig8")
    figure = plots(collect(table, [], name="fig8", scale="tiny", keys=set()))[0]
    assert "nothing measured yet" in figure


@pytest.mark.slow
def test_the_report_lives_in_a_browser(page, tmp_path: Path):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("needs chromium, which is not installed (apt install chromium)")
    probe = tmp_path / "probe.html"
    text = json.dumps(page).replace("</", "<\\/")
    probe.write_text(f"<body>{PROBE % (text, PHONE)}</body>", encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--autoplay-policy=no-user-gesture-required", "--virtual-time-budget=9000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    assert 'data-played="2"' in done.stdout
    width = int(re.search(r'data-width="(\d+)"', done.stdout)[1])
    assert width <= PHONE
    font = float(re.search(r'data-font="([\d.]+)px"', done.stdout)[1])
    assert font >= 14
    assert not [text for text in done.stderr.splitlines() if "CONSOLE" in text]


def test_the_front_is_what_no_row_equals_or_beats_in_both():
    rng = np.random.default_rng(0)
    points = {str(k): tuple(map(float, rng.integers(0, 9, 2))) for k in range(40)}
    front = pareto_front(points)
    for key, (cost, figure) in points.items():
        beaten = any(
            other != (cost, figure) and other[0] <= cost and other[1] <= figure
            for other in points.values()
        )
        assert (points[key] in [points[k] for k in front]) == (not beaten)
    costs = [points[key][0] for key in front]
    assert costs == sorted(set(costs))


def test_schedules_are_drawn_against_their_cost():
    table = load_table("samplers")
    lines = [
        line(row, 0, {"passes": {"value": passes}, "fvd": {"value": fvd}})
        for row, passes, fvd in (("recipe", 2400, 1.0), ("half", 1200, 3.0), ("quarter", 1200, 2.0))
    ]
    keys = {entry["key"] for entry in lines}
    results = collect(table, lines, name="samplers", scale="tiny", keys=keys)
    figure = next(plot for plot in plots(results) if "Fréchet" in plot)
    assert figure.count("<circle") == 3
    (front,) = re.findall(r'class="line c0" d="M([^"]+)"', figure)
    cheap, dear = (tuple(map(float, p.split())) for p in front.split("L"))
    assert cheap[0] < dear[0]  # to the right: more passes
    assert cheap[1] < dear[1]  # down the page: smaller
    assert len(plots(results)) == 7
