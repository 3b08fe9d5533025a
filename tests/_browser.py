"""Measure pages in headless Chromium, at several widths at once."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to measure with")

MEASURE = """
const box = (r) => ({left: r.left, right: r.right, top: r.top, bottom: r.bottom});
const seen = (e) => e.getClientRects().length > 0 && getComputedStyle(e).visibility !== "hidden";
const scrolls = (e) => e.closest(".scroll, pre") !== null;
const name = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""} ` +
  (e.textContent || "").trim().slice(0, 60);
for (const input of document.querySelectorAll("details")) input.open = true;
const width = document.documentElement.clientWidth;
const found = {width, page: document.documentElement.scrollWidth, wide: [], cut: [], charts: []};
for (const e of document.querySelectorAll("body *")) {
  if (!seen(e) || e.closest("svg") && e.tagName !== "svg") continue;
  const r = e.getBoundingClientRect();
  if (!scrolls(e) && (r.right > width + 0.5 || r.left < -0.5)) found.wide.push(name(e));
  const style = getComputedStyle(e);
  if (!scrolls(e) && style.overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1
      && e.clientWidth > 1) found.cut.push(name(e));
}
found.panels = [...document.querySelectorAll(".tabs")].filter(seen).map((tabs) =>
  [...tabs.children].filter((e) => e.matches(".panel") && seen(e)).length);
for (const svg of document.querySelectorAll("svg.chart")) {
  if (!seen(svg)) continue;
  const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
  const boxes = texts.map((t) => ({text: t.textContent, ...box(t.getBoundingClientRect())}));
  const marks = [...svg.querySelectorAll("path[aria-label], line[aria-label], rect[aria-label]")];
  const r = svg.getBoundingClientRect();
  const plot = [...svg.querySelectorAll("path, line, rect, circle")].filter((m) => {
    const b = m.getBoundingClientRect();
    return (b.width > 0 || b.height > 0) && b.right > r.left && b.left < r.right
      && b.bottom > r.top && b.top < r.bottom;
  });
  found.charts.push({name: svg.getAttribute("aria-label"), texts: boxes, marks: marks.length,
    plot: plot.length, ...box(r)});
}
parent.postMessage(JSON.stringify(found), "*");
"""
"""Runs in the page, with all details open."""


def measure(page: Path, folder: Path, widths: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What `MEASURE` finds in a page, by the width of the window in pixels.

    Args:
        folder: For files of this function.
    """
    copy = folder / "measured.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{MEASURE}</script></body>"))
    frames = "".join(
        f'<iframe src="measured.html" width="{each}" height="900"></iframe>' for each in widths
    )
    frame = folder / "frames.html"
    frame.write_text(
        f"<!doctype html><style>iframe {{ border: 0 }}</style><script>const all = [];"
        "addEventListener('message', (e) => { all.push(JSON.parse(e.data));"
        "document.getElementById('found').textContent = JSON.stringify(all); });</script>"
        f"<pre id=found></pre>{frames}"
    )
    dumped = _dom(frame)
    found = re.search(r'<pre id="found">(.*?)</pre>', dumped, flags=re.DOTALL)
    assert found is not None and found.group(1), dumped[-2000:]
    measured = {each["width"]: each for each in json.loads(html.unescape(found.group(1)))}
    assert set(measured) == set(widths), "a page was not measured"
    return measured


def _dom(page: Path) -> str:
    """A page's document after its scripts."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=20000", "--window-size=1500,1000", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def overlapping(chart: dict[str, Any]) -> list[tuple[str, str]]:
    """Texts of a chart that cover each other by more than a pixel."""
    texts = chart["texts"]
    return [
        (one["text"], other["text"])
        for place, one in enumerate(texts)
        for other in texts[place + 1 :]
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 2
    ]
