"""Make `report.html` of `metrics.json` alone, one file that opens without a network.

The page reads from the top: a sentence, large figures with their baselines, then sections. Its parts are here; the
report of a whole recipe (`cli/chain_report`) is made of the same.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from groundup.common.files import PAGE_FILE, atomic_write
from groundup.evaluation.curves import Curve, chart
from groundup.evaluation.metrics_json import (
    BESIDE,
    BETTER_WHEN_SMALLER,
    difference,
    family_lines,
    headline,
    notes,
    number,
    read_metrics,
    row_key,
    section,
    shown,
    spread,
    title,
)
from groundup.evaluation.summary import beside, grouped, sorted_rows

_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
WHOLE_NAMES = 60  # letters of a name in a table on a page
FIRST = ("accuracy", "bits_per_byte", "exact_match", "f1_macro", "chrf", "f1", "perplexity", "token_accuracy", "mcc")
MOST_FIGURES = 4

Sections = list[tuple[str, Markup]]


def write_page(folder: Path) -> Path:
    """Write `report.html` beside `metrics.json`, and return its path. Nothing but `metrics.json` is read."""
    path = Path(folder) / PAGE_FILE
    atomic_write(path, page(read_metrics(folder)).encode())
    return path


def page(metrics: dict[str, Any]) -> str:
    """Return the page of what `metrics.json` holds."""
    rows = section(metrics["metrics"], "results")
    on = list(dict.fromkeys(row["dataset"] for row in rows))
    heading = f"Evaluation on {', '.join(on[:3])}{', ...' if len(on) > 3 else ''}" if on else "Evaluation"
    return document(heading, lead(metrics), sections(metrics))


_PAGE = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
</header>
<nav aria-label="Sections"><ul>
{links}</ul></nav>
<main>
{body}</main>
</body>
</html>
""")


def document(heading: str, lead: Markup, parts: Sections) -> str:
    """Return a whole page in HTML with its style inside: a heading, what counts, and sections with links to them."""
    named = [(f"part-{number}", name, content) for number, (name, content) in enumerate(parts, 1) if content]
    link = Markup('<li><a href="#{}">{}</a></li>\n')
    part = Markup('<section id="{}"{}>\n<h2>{}</h2>\n{}\n</section>\n')
    is_long = Markup(' class="long"')
    body = [part.format(key, is_long if len(content) > 6000 else "", name, content) for key, name, content in named]
    links = Markup().join(link.format(key, name) for key, name, _ in named)
    style = Markup("\n" + _STYLE)
    return str(_PAGE.format(title=heading, style=style, lead=lead, links=links, body=Markup().join(body)))


def lead(metrics: dict[str, Any]) -> Markup:
    """Return what counts of a measurement: one sentence, and large figures with interval and best baseline."""
    tested, _, _ = sorted_rows(section(metrics["metrics"], "results"))
    said = headline([*tested, *section(metrics["metrics"], "comparison")])
    sentence = Markup('<p class="lead">{}</p>\n').format(said) if said else Markup()
    return sentence + figures(tested)


def figures(rows: Sequence[dict[str, Any]]) -> Markup:
    """Return the main numbers as large figures: of one model its measures, of several models one measure of each."""
    own = [row for row in rows if not row.get("baseline") and row["name"] in FIRST and row["value"] is not None]
    own.sort(key=lambda row: FIRST.index(row["name"]))
    if len({row.get("model") for row in own}) > 1:
        own = [row for row in own if row_key(row) == row_key(own[0])]
    figure = Markup(
        '<div class="figure"><dt>{}</dt><dd class="value">{}</dd><dd class="beside">{}</dd><dd class="beside">{}</dd>'
        "</div>\n"
    )
    cards = []
    for row in own[:MOST_FIGURES]:
        rivals = [other for other in rows if other.get("baseline") and row_key(other) == row_key(row)]
        rivals = [other for other in rivals if other["value"] is not None and other.get("model") == row.get("model")]
        better = min if row["name"] in BETTER_WHEN_SMALLER else max
        best = better(rivals, key=lambda other: other["value"], default=None)
        name = f"{row['model']}: {title(row)}" if row.get("model") else title(row)
        within = spread(row) if spread(row).startswith("±") or not spread(row) else f"95 % interval {spread(row)}"
        cards.append(figure.format(name, number(row), within, f"{best['baseline']}: {number(best)}" if best else ""))
    return Markup('<dl class="figures">\n{}</dl>').format(Markup().join(cards)) if cards else Markup()


def sections(metrics: dict[str, Any]) -> Sections:
    """Return what `metrics.json` holds as sections of a page, those with nothing in them left out."""
    rows = metrics["metrics"]
    failures = [f"{part}: {reason}" for part, reason in metrics.get("failures", {}).items()]
    parts = [
        ("Results", results(metrics, is_led=True)),
        ("Loss by position", _positions_plot(section(rows, "positions"))),
        ("Few-shot accuracy", _fewshot_plot(section(rows, "results"))),
        ("Samples", samples(metrics.get("samples", []))),
        ("Tokenizer", tokenizer_costs(section(rows, "tokenizer"))),
        ("Not measured", bullets(failures)),
        ("How it was made", facts(metrics)),
    ]
    return [(name, content) for name, content in parts if content]


def results(metrics: dict[str, Any], *, is_led: bool = False) -> Markup:
    """Return the scores: a table for each set of test rows, differences in words, all other rows folded.

    With `is_led` the sentence that counts is said above already.
    """
    rows, compared = section(metrics["metrics"], "results"), section(metrics["metrics"], "comparison")
    tested, _, _ = sorted_rows(rows)
    others = [row for row in rows if row not in tested]
    known = headline([*tested, *compared])
    told = [line for line in (*notes(rows), *map(difference, compared)) if not is_led or line != known]
    said = each('<p class="note">{}</p>\n', [*told, *_how(rows)])
    families = table(*family_lines(section(metrics["metrics"], "families")), kind="text")
    return (
        _grouped_tables(tested)
        + said
        + (Markup("<h3>By family</h3>\n") + families if families else Markup())
        + (folded("Scores on other rows: validation, without overlap", _grouped_tables(others)) if others else Markup())
    )


def _grouped_tables(rows: Sequence[dict[str, Any]]) -> Markup:
    tables = []
    for name, some in grouped(rows).items():
        models = list(dict.fromkeys(row.get("model") for row in some if not row.get("baseline")))
        tables.append(table(*beside(some, models, WHOLE_NAMES), kind="scores", caption=name))
    return Markup("\n").join(tables)


def samples(texts: Sequence[dict[str, Any]]) -> Markup:
    """Return generated texts, each after its prompt."""
    block = Markup('<p class="note">{about}seed {seed}</p>\n<pre><b>{prompt}</b>{text}</pre>\n')
    return Markup().join(
        block.format(**{**sample, "about": f"{sample['model']}, " if sample.get("model") else ""}) for sample in texts
    )


def folded(name: str, content: Markup) -> Markup:
    """Return content that opens at a press."""
    return Markup("<details><summary>{}</summary>\n{}</details>\n").format(name, content)


def each(html: str, texts: Iterable[str]) -> Markup:
    """Return the HTML once for each text, which is escaped and put in the place of `{}`."""
    return Markup().join(Markup(html).format(text) for text in texts)


def bullets(texts: Sequence[str]) -> Markup:
    """Return a list in HTML, nothing for no texts."""
    return Markup("<ul>") + each("<li>{}</li>\n", texts) + Markup("</ul>") if texts else Markup()


def table(
    header: Sequence[str], lines: Sequence[Sequence[str]], kind: str = "numbers", caption: str | None = None
) -> Markup:
    """Return a table in HTML.

    Of the `kind` "text" its second column is text too, of "words" all are; of "scores" it is stressed.
    """
    body = Markup()
    for line in lines:
        note = Markup(' class="note"' if line[0].startswith(BESIDE) else "")
        body += Markup("<tr{}>{}</tr>\n").format(note, each("<td>{}</td>", line))
    heading = each("<th scope=col>{}</th>", header)
    whole = Markup(
        '<div class="scroll" tabindex="0"><table class="{}">{}\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n'
        "</table></div>\n"
    )
    named = each("<caption>{}</caption>", [caption] if caption else [])
    return whole.format(kind, named, heading, body) if lines else Markup()


def _how(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how the numbers were taken, each way once."""
    said = []
    for row in rows:
        if row.get("baseline"):
            continue
        if row.get("context"):
            stride = f", one every {row['stride']:,}" if row.get("stride") else ", each document alone"
            windows = f"windows of {row['context']:,} tokens{stride}; {row['count']:,} tokens counted"
            said.append(f"{row['dataset']}: {windows}.")
        if row.get("interval"):
            said.append(f"95 % intervals are over {row['interval']}.")
    return list(dict.fromkeys(said))


def tokenizer_costs(rows: Sequence[dict[str, Any]]) -> Markup:
    """Return a table for each measure: a line for each kind of text, a column for each tokenizer."""
    tables = []
    for name in dict.fromkeys(row["name"] for row in rows):
        some = [row for row in rows if row["name"] == name]
        values = {(row["dataset"], row.get("model"), row["baseline"]): row for row in some}
        columns = {(row.get("model"), row["baseline"]): _column(row) for row in some}
        lines = [
            [kind, *(shown(values.get((kind, *column))) for column in columns)]
            for kind in dict.fromkeys(row["dataset"] for row in some)
        ]
        tables.append(table(["", *columns.values()], lines, caption=title(some[0])))
    return Markup('<div class="charts">\n{}</div>\n').format(Markup().join(tables)) if tables else Markup()


def _column(row: dict[str, Any]) -> str:
    """Return the name of the tokenizer that a row is about: the model's own, or a baseline's beside it."""
    if row["baseline"] is None:
        return row.get("model") or "this model"
    return f"{row['baseline']} ({row['model']})" if row.get("model") else row["baseline"]


def coloured(pieces: Iterable[tuple[str, str]]) -> Markup:
    """Return a text as its tokens, each on a ground of its own; pieces are texts and what is said of each."""
    token = Markup('<span class="t{}" title="{}">{}</span>')
    spans = (token.format(number % 5, about, piece) for number, (piece, about) in enumerate(pieces))
    return Markup('<p class="tokens">{}</p>\n').format(Markup().join(spans))


def facts(metrics: dict[str, Any]) -> Markup:
    """Return what the file says of the models and of the packages, folded."""
    training, models = dict(metrics["training"]), metrics["training"].get("models", {})
    training.pop("models", None)
    known = {f"{model}: {name}": value for model, values in models.items() for name, value in values.items()}
    lines = [[name.replace("_", " "), _fact(value)] for name, value in {**known, **training}.items()]
    lines += [[name, str(value)] for name, value in metrics["versions"].items()]
    if metrics["weights_sha256"]:
        lines.append(["sha256 of the weights", metrics["weights_sha256"]])
    return folded("Model, machine and versions", table(["", ""], lines, kind="text")) if lines else Markup()


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_fact(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _positions_plot(rows: Sequence[dict[str, Any]]) -> Markup:
    """Plot the loss by the tokens of context that a prediction had."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row.get("model", "this model"), []).append(row)
    if not lines:
        return Markup()
    places = list(dict.fromkeys(row["positions"] for row in rows))
    curves = [
        Curve(name, [places.index(row["positions"]) for row in line], [row["value"] for row in line], has_dots=True)
        for name, line in lines.items()
    ]
    by_position = {(row["positions"], name): row for name, line in lines.items() for row in line}
    values = [[position, *(shown(by_position.get((position, name))) for name in lines)] for position in places]
    plot = chart("Loss (nats per token)", curves, "tokens of context", places)
    return plot + folded("The numbers", table(["tokens of context", *lines], values))


def _fewshot_plot(rows: Sequence[dict[str, Any]]) -> Markup:
    """Plot accuracy by the number of examples, for each task and model that has several."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("num_fewshot") is not None and not row.get("baseline") and row["name"] == "accuracy":
            name = f"{row['dataset']}{', ' + row['model'] if row.get('model') else ''}"
            lines.setdefault(name, []).append(row)
    shots = sorted({row["num_fewshot"] for line in lines.values() for row in line})
    curves = [
        Curve(name, [shots.index(row["num_fewshot"]) for row in line], [row["value"] for row in line], has_dots=True)
        for name, line in lines.items()
        if len(line) > 1
    ]
    return chart("Accuracy", curves, "examples in the prompt", list(map(str, shots)), is_share=True)
