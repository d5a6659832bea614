"""The report of a move as one page of HTML: no network, no script, light and dark, and for paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from whimbrel.move import plots
from whimbrel.move.markup import Markup, joined, tag
from whimbrel.move.plots import Bar

Found = Mapping[str, Any]

_VERDICTS = {
    "planned": "is planned",
    "copying": "is being copied",
    "catching_up": "is catching up",
    "verifying": "is being verified",
    "ready": "is ready to be switched",
    "prepared": "is being switched",
    "switched": "is switched; the way back is open",
    "finalised": "is done",
    "rolled_back": "was rolled back; searches read the old view",
    "aborted": "was aborted; nothing of it is left",
    "failed": "needs you",
}


def page(found: Found) -> str:
    """`found`: what `whimbrel.move.report.report` gives."""
    move = found["move"]
    title = f"Move {move['id']} of {move['collection']}"
    body = joined(
        _header(found),
        _ends(move),
        _numbers(found),
        _section("How it went", _timeline(found), _throughput(found)),
        _section("Every row compared", *_compared(move)),
        _section("Searching both sides", *_searched(move["checks"])),
        *_quality(move["checks"]),
        *_lost(found),
        *_rejected(found),
        _section("History", _history(found)),
        tag("footer", f"Written {_time(found['written_at'])} by Whimbrel. No text of a document is in this page."),
    )
    head = joined(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(_STYLE)),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', tag('main', body)), lang='en')}\n"


# --- what it was -----------------------------------------------------------------------------------------------------


def _header(found: Found) -> Markup:
    move = found["move"]
    state = move["state"]
    said = [tag("p", move["error"], class_="error")] if move["error"] else []
    said += [tag("p", move["hint"], class_="hint")] if move["hint"] else []
    return tag(
        "header",
        tag("p", f"Move {move['id']}", class_="over"),
        tag("h1", tag("b", move["collection"]), f" {_VERDICTS.get(state, state)}"),
        *said,
    )


def _ends(move: Found) -> Markup:
    def side(name: str, views: Sequence[Found]) -> Markup:
        rows = [
            tag(
                "div",
                tag("code", view["uri"]),
                tag("p", f"view {view['id']}, {view['kind']}, {view['state']}"),
                *_model(view),
                tag("p", view["chunking"]),
            )
            for view in views
        ]
        return tag("section", tag("h2", name), *(rows or [tag("p", "dropped")]), class_=f"end {name}")

    arrow = tag("div", "→", class_="arrow", aria_hidden="true")
    return tag("div", side("source", move["source"]), arrow, side("target", move["target"]), class_="ends")


def _model(view: Found) -> list[Markup]:
    space = view["space"]
    return [tag("p", f"{space['embedder']}, {space['dimensions']:,} dimensions")] if space else []


def _numbers(found: Found) -> Markup:
    move, checks = found["move"], found["move"]["checks"]
    copying = sum(one["seconds"] for one in found["timeline"] if one["state"] in ("copying", "catching_up"))
    verifying = sum(one["seconds"] for one in found["timeline"] if one["state"] == "verifying")
    views = checks.get("views", [])
    wrong = sum(view["missing"] + view["extra"] + view["different"] + view["doubled"] for view in views)
    facts = [
        ("rows", f"{views[0]['rows'] if views else move['rows']['done']:,}"),
        ("to build", _seconds(copying)),
        ("to verify", _seconds(verifying)),
        ("differences", f"{wrong:,}" if views else "–"),
        ("mended", f"{checks.get('mended', 0):,}" if views else "–"),
        ("refused", f"{found['rejected']['rows']:,}"),
    ]
    cells = [tag("div", tag("dd", value), tag("dt", name)) for name, value in facts]
    return tag("dl", *cells, class_="numbers")


# --- how it went -----------------------------------------------------------------------------------------------------


def _timeline(found: Found) -> Markup:
    spans = [(one["state"], float(one["seconds"])) for one in found["timeline"]]
    while len(spans) > 1 and spans[-1][1] == 0:  # where a move ended
        spans.pop()
    return tag("figure", tag("figcaption", "States"), plots.timeline(spans))


def _throughput(found: Found) -> Markup:
    rates = [(one["seconds"], one["rows_per_s"]) for one in found["throughput"]]
    if len(rates) < 2:
        return tag("p", "It was copied too quickly for a curve: less than three seconds.", class_="none")
    plot = plots.line(rates, label="Throughput over time", unit="rows/s")
    return tag("figure", tag("figcaption", "Rows copied per second"), plot)


def _history(found: Found) -> Markup:
    rows = [[one["state"].replace("_", " "), _time(one["at"]), _seconds(one["seconds"])] for one in found["timeline"]]
    return _table(["state", "from", "for"], rows)


# --- what was found --------------------------------------------------------------------------------------------------


def _compared(move: Found) -> list[Markup]:
    checks = move["checks"]
    if not checks.get("views"):
        return [tag("p", "Nothing has been compared yet.", class_="none")]
    headers = ["view", "position", "rows", "due", "missing", "extra", "different", "twice", "changing", "verdict"]
    rows = [
        [
            f"{view['view']} ({view['kind']})",
            *(f"{view[name]:,}" for name in _COUNTS),
            tag("b", "equal", class_="good") if view["equal"] else tag("b", "different", class_="bad"),
        ]
        for view in checks["views"]
    ]
    accepted = [tag("p", "A person has accepted these differences.", class_="hint")] if move["accepted"] else []
    intro = f"Ids, texts, metadata and vectors of every row, at one position of the log, in {checks['seconds']:,.1f} s."
    return [tag("p", intro), _table(headers, rows), *_damage(checks), *_examples(checks), *accepted]


_COUNTS = ("position", "rows", "expected", "missing", "extra", "different", "doubled", "changing")


def _damage(checks: Found) -> list[Markup]:
    return [tag("p", view["damage"], class_="error") for view in checks["views"] if view.get("damage")]


def _examples(checks: Found) -> list[Markup]:
    found = [
        [f"{view['view']} ({view['kind']})", kind, tag("code", id_)]
        for view in checks["views"]
        for kind, ids in view.get("examples", {}).items()
        for id_ in ids
    ]
    if not found:
        return []
    return [tag("details", tag("summary", f"The first {len(found):,} of them"), _table(["view", "what", "row"], found))]


def _searched(checks: Found) -> list[Markup]:
    found = checks.get("search")
    if not found:
        return [tag("p", "Neither side has been searched yet.", class_="none")]
    source, target = found["source"], found["target"]
    sides = [(name, of) for name, of in (("source", source), ("target", target)) if "error" not in of]
    recall = [Bar(name, of["recall@10"], f"{of['recall@10']:.3f}", name == "source") for name, of in sides]
    latency = [
        Bar(f"{name} {at}", of[f"{at}_ms"], f"{of[f'{at}_ms']:.1f} ms", name == "source")
        for at in ("p50", "p95")
        for name, of in sides
    ]
    told = (
        f"{target['queries']:,} searches on each side, {found.get('questions', 0):,} of them recent questions, against "
    )
    figures = [
        tag("p", f"{told}exact search over the vectors of record."),
        tag("figure", tag("figcaption", "Recall@10"), plots.bars(recall, label="Recall@10", top=1.0)),
        tag("figure", tag("figcaption", "Time of a search"), plots.bars(latency, label="Time of a search")),
    ]
    if "error" in source:
        figures.append(tag("p", f"The source did not answer: {source['error']}", class_="error"))
    if "overlap" in found:
        share = f"Of the documents that a recent question finds, {found['overlap']:.1%} are the same on both sides."
        figures.append(tag("p", share))
    return figures


def _quality(checks: Found) -> list[Markup]:
    """Of both sides, by judged queries; where that was asked for."""
    found = checks.get("quality")
    if not found:
        return []
    if "error" in found:
        return [_section("How well it finds", tag("p", found["error"], class_="error"))]
    rows = [
        [
            mode,
            metric,
            f"{one['before']:.4f}",
            f"{one['after']:.4f}",
            f"{one['difference']:+.4f}",
            f"{one['low']:+.4f} to {one['high']:+.4f}",
            f"{one['p']:.4f}",
        ]
        for mode, of in found["modes"].items()
        for metric, one in of.items()
    ]
    headers = ["mode", "metric", "source", "target", "difference", "95 % interval", "p"]
    bars = [
        Bar(f"{side}, {mode}", of["ndcg@10"][key], f"{of['ndcg@10'][key]:.3f}", side == "source")
        for mode, of in found["modes"].items()
        if "ndcg@10" in of
        for side, key in (("source", "before"), ("target", "after"))
    ]
    intro = (
        f"{found['name']}: {found['queries']:,} judged queries; {found['matched']:,} of {found['documents']:,} "
        "documents are in the collection."
    )
    figure = tag("figure", tag("figcaption", "nDCG@10"), plots.bars(bars, label="nDCG@10", top=1.0))
    return [_section("How well it finds", tag("p", intro), figure, _table(headers, rows))]


def _lost(found: Found) -> list[Markup]:
    """What the target does otherwise than the source, by what both say of themselves."""
    if found["losses"] is None:
        return []
    if not found["losses"]:
        return [_section("What was lost", tag("p", "Nothing, by what both say of themselves.", class_="none"))]
    said = [tag("li", one["said"]) for one in found["losses"]]
    return [_section("What was lost, or is done otherwise", tag("ul", *said))]


def _rejected(found: Found) -> list[Markup]:
    rejected = found["rejected"]
    if not rejected["rows"]:
        return []
    rows = [[tag("code", one["id"]), one["document"], one["reason"]] for one in rejected["named"]]
    more = rejected["rows"] - len(rows)
    intro = "The target refuses these rows; the catalog keeps them, and searches by words find them."
    note = [tag("p", f"{more:,} more are in rejects.jsonl beside this page.")] if more else []
    return [_section("Rows that cannot go", tag("p", intro), _table(["row", "document", "reason"], rows), *note)]


# --- pieces ----------------------------------------------------------------------------------------------------------


def _section(title: str, *children: Markup) -> Markup:
    return tag("section", tag("h2", title), *children)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    head = tag("tr", *(tag("th", name, scope="col") for name in headers))
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def _time(at: str) -> str:
    return datetime.fromisoformat(at).strftime("%Y-%m-%d %H:%M:%S UTC")


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


_STYLE = """
:root{--ground:#fbfaf8;--card:#fff;--ink:#1d2327;--soft:#626c74;--rule:#e3e1dc;--rail:#f0eee9;--source:#9aa3ab;
--target:#0b6e82;--wash:#0b6e8222;--good:#1e7d4f;--bad:#b3261e;--warm:#c98a1b}
@media(prefers-color-scheme:dark){:root{--ground:#14181b;--card:#1c2226;--ink:#e9ecee;--soft:#9aa5ad;--rule:#313a40;
--rail:#262e33;--source:#7d8890;--target:#4fb6cc;--wash:#4fb6cc2b;--good:#5cc08d;--bad:#f2857d;--warm:#e0b057}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
header{margin-bottom:1.75rem}.over{margin:0;color:var(--soft);letter-spacing:.08em;text-transform:uppercase;
font-size:.75rem}h1{margin:.1em 0;font-size:2rem;font-weight:400;line-height:1.2;overflow-wrap:anywhere}
h2{font-size:1rem;margin:0 0 .75rem}.error{color:var(--bad)}.hint,.none,figcaption,footer{color:var(--soft)}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:1.25rem 1.4rem;margin:0 0 1.1rem}
.ends{display:grid;grid-template-columns:1fr auto 1fr;gap:.8rem;align-items:stretch}.ends section{margin:0 0 1.1rem}
.end{border-top:4px solid var(--source)}.end.target{border-top-color:var(--target)}.end p{margin:0;color:var(--soft);
font-size:.875rem}.end div+div{margin-top:.8rem}.arrow{align-self:center;font-size:1.6rem;color:var(--soft)}
code{font:.875em ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.5rem,1fr));gap:.8rem;margin:0 0 1.1rem}
.numbers div{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:.8rem 1rem}
.numbers dd{margin:0;font-size:1.5rem;font-variant-numeric:tabular-nums}.numbers dt{color:var(--soft);font-size:.8rem}
figure{margin:0 0 1.2rem}figcaption{font-size:.8rem;margin-bottom:.25rem}svg{display:block;width:100%;height:auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--soft);
font-variant-numeric:tabular-nums}svg .name,svg .value{font-size:13px;fill:var(--ink)}
.line{fill:none;stroke:var(--target);stroke-width:2;stroke-linejoin:round}.ground{fill:var(--wash)}
.mark{fill:var(--target);opacity:0}.mark:hover{opacity:1}.rule{stroke:var(--rule)}.rail{fill:var(--rail)}
rect.source{fill:var(--source)}rect.target{fill:var(--target)}
.state{fill:var(--source)}.state.copying{fill:var(--target)}.state.catching_up{fill:var(--target);opacity:.6}
.state.verifying{fill:var(--warm)}.state.ready{fill:var(--good);opacity:.5}.state.prepared{fill:var(--good);opacity:.7}
.state.switched,.state.finalised{fill:var(--good)}.state.failed,.state.aborted{fill:var(--bad)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:.5rem 0 0;padding:0;font-size:.8rem;
color:var(--soft)}.legend i{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.45em;
background:var(--source)}.legend .copying,.legend .catching_up{background:var(--target)}
.legend .catching_up{opacity:.6}
.legend .verifying{background:var(--warm)}.legend .ready{background:var(--good);opacity:.5}
.legend .prepared{background:var(--good);opacity:.7}.legend .switched,.legend .finalised{background:var(--good)}
.legend .failed,.legend .aborted{background:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:500;color:var(--soft)}th,td{padding:.35rem .8rem .35rem 0;
border-bottom:1px solid var(--rule);vertical-align:top;overflow-wrap:anywhere}tr:last-child td{border-bottom:0}
.good{color:var(--good)}.bad{color:var(--bad)}
summary{cursor:pointer;color:var(--soft);margin:.5rem 0}footer{font-size:.8rem}
@media(max-width:40rem){.ends{grid-template-columns:1fr}.arrow{justify-self:center;transform:rotate(90deg)}
h1{font-size:1.5rem}}@media print{body{background:#fff}section,.numbers div{break-inside:avoid}}
"""
