"""The pictures of a report, drawn with matplotlib: as SVG text for the page and as PNG files beside it."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.figure import Figure as Drawing

from perf.results import Point, place_text
from perf.scenarios.scenario import Chart

COLOURS = ("#0b6e4f", "#c1440e", "#6c7a89", "#2b59c3", "#b8860b", "#7b2d8e", "#3a3a3a", "#d36582")
MARKERS = "osD^vPX*"
SIZE = (7.2, 4.0)


def draw(chart: Chart, points: Sequence[Point]) -> Drawing | None:
    """None when the points have nothing of it."""
    if chart.series:
        return over_time(chart, [point for point in points if chart.series in point.series])
    points = [point for point in points if point.values(chart.figure) and chart.over in point.place]
    if not points:
        return None
    drawing, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    (bars if chart.kind == "bars" else lines)(axes, chart, points)
    finish(axes, chart)
    axes.legend(fontsize=8, frameon=False)
    return drawing


def lines(axes: Any, chart: Chart, points: Sequence[Point]) -> None:
    """One for each arm and each of the other parameters, with the range of its runs."""
    drawn: dict[str, list[Point]] = {}
    for point in points:
        others = {name: value for name, value in point.place.items() if name != chart.over}
        drawn.setdefault(", ".join(filter(None, (point.arm, place_text(others)))), []).append(point)
    for number, (name, those) in enumerate(drawn.items()):
        those.sort(key=lambda point: point.place[chart.over])
        values = [point.values(chart.figure) for point in those]
        middles = [point.middle(chart.figure) for point in those]
        below = [middle - each[0] for middle, each in zip(middles, values, strict=True)]
        above = [each[-1] - middle for middle, each in zip(middles, values, strict=True)]
        places = [point.place[chart.over] for point in those]
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axes.errorbar(places, middles, yerr=(below, above), label=name, capsize=3, markersize=5, linewidth=1.4, **style)
    if "x" in chart.log:
        axes.set_xscale("log", base=2 if chart.over == "streams" else 10)
    places = sorted({point.place[chart.over] for point in points})
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()


def bars(axes: Any, chart: Chart, points: Sequence[Point]) -> None:
    """A group for each place, in it a bar for each arm."""
    places = list(dict.fromkeys(point.place[chart.over] for point in points))
    arms = list(dict.fromkeys(point.arm for point in points))
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        those = [point for point in points if point.arm == arm]
        at = [places.index(point.place[chart.over]) + (number - (len(arms) - 1) / 2) * width for point in those]
        heights = [point.middle(chart.figure) for point in those]
        axes.bar(at, heights, width * 0.92, label=arm, color=COLOURS[number % len(COLOURS)])
    axes.set_xticks(range(len(places)), places)


def over_time(chart: Chart, points: Sequence[Point]) -> Drawing | None:
    """A panel for each arm at the first place, all on the same scale."""
    points = [point for point in points if point.place == points[0].place]
    if not points:
        return None
    height = 0.6 + 1.35 * len(points)
    drawing, panels = pyplot.subplots(
        len(points), 1, figsize=(SIZE[0], height), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for number, (axes, point) in enumerate(zip(panels[:, 0], points, strict=True)):
        moments = [entry[0] for entry in point.series[chart.series]]
        colour = COLOURS[number % len(COLOURS)]
        middle, high, top = ([entry[place] for entry in point.series[chart.series]] for place in (1, 2, 3))
        axes.fill_between(moments, middle, top, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.step(moments, high, where="post", color=colour, linewidth=1.6)
        axes.step(moments, middle, where="post", color=colour, linewidth=1.0, linestyle=":")
        axes.set_title(point.arm, fontsize=9, loc="left", pad=2)
        axes.grid(alpha=0.25, linewidth=0.5)
        if "y" in chart.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
    panels[-1, 0].set_xlabel(chart.x)
    drawing.supylabel(chart.y, fontsize=9)
    drawing.suptitle(chart.title, fontsize=11)
    return drawing


def finish(axes: Any, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=11)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if "y" in chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)


def save(drawing: Drawing, png: Path) -> str:
    """Writes the PNG; returns the SVG, whose ids are its own on a page with others."""
    drawing.savefig(png, dpi=140)
    text = io.StringIO()
    drawing.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(drawing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{png.stem}-", svg)
