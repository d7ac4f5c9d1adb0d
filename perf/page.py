"""A report: one document, written as a self-contained HTML page and as Markdown with pictures beside it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import reading
from perf.report import table
from perf.results import Point, Results, place_text
from perf.scenarios import SCENARIOS
from perf.scenarios.scenario import Chart, Scenario


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Listing:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """`name` is that of its file, without .png; `chart` is drawn from `points`."""

    name: str
    chart: Chart
    points: Sequence[Point]


Block = Heading | Paragraph | Code | Listing | Table | Picture


def document(outcome: Results, charts: bool = True) -> list[Block]:
    blocks: list[Block] = [Heading("GIL and no GIL: measurements", 1)]
    if charts:
        blocks += about(outcome)
    if found := reading.findings(outcome):
        blocks += [Heading("What it shows"), Listing(found)]
    for name, scenario in SCENARIOS.items():
        if outcome.of(name):
            blocks += about_scenario(scenario, outcome, charts)
    if outcome.failures:
        blocks += [Heading("What failed"), Listing(outcome.failures)]
    if cautions := reading.cautions(outcome):
        blocks += [Heading("What it does not show"), Listing(cautions)]
    return blocks


def about(outcome: Results) -> list[Block]:
    """The machine and the interpreters."""
    facts = list(dict.fromkeys(fact for each in outcome.builds.values() for fact in each))
    rows = [[fact, *(each.get(fact, "") for each in outcome.builds.values())] for fact in facts]
    gil = ["GIL", *("on" if not name.endswith("t") else "off" for name in outcome.builds)]
    unequal = outcome.differences or ["Interpreters, grpcio and tokenizers were built alike, as far as they tell."]
    return [
        Paragraph(
            f"{outcome.started}, a {outcome.scale} run of {outcome.seconds / 60:.0f} minutes. "
            + ", ".join(f"{name} {value}" for name, value in outcome.machine.items())
            + "."
        ),
        Paragraph(
            "Every point is a fresh process, warmed up; arms take turns. Figures are medians, with the least and the "
            "most of the runs in brackets; CPU is user and system time as the operating system counts it."
        ),
        Heading("Interpreters"),
        Table(["", *outcome.builds], [gil, *rows]),
        Listing([f"Not the same: {each}" for each in unequal] if outcome.differences else unequal),
    ]


def about_scenario(scenario: Scenario, outcome: Results, charts: bool) -> list[Block]:
    points = outcome.of(scenario.name)
    blocks: list[Block] = [Heading(scenario.title), Paragraph(scenario.question)]
    blocks.append(Code(outcome.commands.get(scenario.name, "")))
    if charts:
        blocks += [
            Picture(f"{scenario.name}-{number}", chart, points) for number, chart in enumerate(scenario.charts, 1)
        ]
    blocks += tables(scenario, points)
    blocks += [Paragraph(note) for note in scenario.notes]
    return blocks


def tables(scenario: Scenario, points: Sequence[Point]) -> list[Block]:
    """A row for each point; where there are more figures than fit a row, a row for each figure (components)."""
    names = [name for name in scenario.figures if any(point.values(name) for point in points)]
    if len(names) > 12:
        return [by_figure(scenario, points, names)]
    # What some places have others may not: such tables are split.
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(tuple(name for name in names if point.values(name)), []).append(point)
    found: list[Block] = [by_point(scenario, those, own) for own, those in groups.items()]
    return [*found, Paragraph("What it took:"), costs(points)]


def by_point(scenario: Scenario, points: Sequence[Point], names: Sequence[str]) -> Table:
    header = ["", *(scenario.figure(name).title for name in names)]
    rows = [
        [
            f"{place_text(point.place)}: {point.arm}",
            *(point.shown(name, scenario.figure(name).digits) for name in names),
        ]
        for point in ordered(points)
    ]
    return Table(header, rows)


def by_figure(scenario: Scenario, points: Sequence[Point], names: Sequence[str]) -> Table:
    header = ["", *(f"{point.arm}, {place_text(point.place)}" for point in points)]
    rows = [
        [scenario.figure(name).title, *(point.shown(name, scenario.figure(name).digits) for point in points)]
        for name in names
    ]
    return Table(header, rows)


COSTS = ("cpu", "rss_mb", "threads", "gc_ms", "waited_share", "busiest_share", "load_share", "others_share", "errors")


def costs(points: Sequence[Point]) -> Table:
    """What the operating system says of each point, and how much of the machine others took."""
    from perf.measure import COMMON

    header = ["", *(COMMON[name].title for name in COSTS)]
    rows = []
    for point in ordered(points):
        shown = [f"{point.middle(name):.{COMMON[name].digits}f}" if point.values(name) else "" for name in COSTS]
        rows.append([f"{place_text(point.place)}: {point.arm}", *shown])
    return Table(header, rows)


def ordered(points: Sequence[Point]) -> list[Point]:
    """Arms of one place beside each other."""
    places = list(dict.fromkeys(place_text(point.place) for point in points))
    return sorted(points, key=lambda point: places.index(place_text(point.place)))


# --- writing --------------------------------------------------------------------------------------------------------


def write(outcome: Results, folder: Path) -> None:
    """report.html, report.md and the pictures; without matplotlib there are none, and the report says so."""
    blocks = document(outcome)
    drawn: dict[str, str] = {}
    try:
        from perf import plots
    except ImportError:
        blocks.insert(1, Paragraph("matplotlib is not installed here, so there are no pictures."))
    else:
        for block in blocks:
            if isinstance(block, Picture) and (drawing := plots.draw(block.chart, block.points)) is not None:
                drawn[block.name] = plots.save(drawing, folder / f"{block.name}.png")
    blocks = [block for block in blocks if not isinstance(block, Picture) or block.name in drawn]
    (folder / "report.md").write_text(markdown(blocks), "utf-8")
    (folder / "report.html").write_text(as_html(blocks, drawn), "utf-8")


def markdown(blocks: Sequence[Block]) -> str:
    return "\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}\n"
        case Paragraph(text):
            return f"{text}\n"
        case Code(text):
            return f"```sh\n{text}\n```\n"
        case Listing(items):
            return "".join(f"- {item}\n" for item in items)
        case Table(header, rows):
            return table(header, rows)
        case Picture(name, chart, _):
            return f"![{chart.title}]({name}.png)\n"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; } th:first-child, td:first-child { text-align: left; }
code { background: #f4f4f4; padding: .15rem .4rem; } svg { max-width: 100%; height: auto; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
"""


def as_html(blocks: Sequence[Block], drawn: dict[str, str]) -> str:
    body = "\n".join(_html(block, drawn) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>GIL and no GIL: measurements</title>\n'
        f"<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def _html(block: Block, drawn: dict[str, str]) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<p><code>{html.escape(text)}</code></p>"
        case Listing(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return f"<table><tr>{head}</tr>{lines}</table>"
        case Picture(name, _, _):
            return f"<figure>{drawn[name]}</figure>"


def main(arguments: Sequence[str]) -> int:
    """`python -m perf page results.json`: writes the report beside it."""
    from perf import results

    if len(arguments) != 1:
        raise SystemExit("usage: python3.13t -m perf page FOLDER/results.json")
    path = Path(arguments[0])
    write(results.load(path), path.parent)
    return 0
