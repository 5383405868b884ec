"""Tables in Markdown of a run on tables, for a README."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import duration, markdown_table
from benchmarks.tables.learners import LEARNERS, OURS
from benchmarks.tables.results import TableResult
from benchmarks.tables.summary import BETTER_MLP, DEFINITIONS, Summary, Versus, summarise
from benchmarks.workloads import count


def markdown(results: Sequence[TableResult]) -> str:
    """Return the errors on each table, and the summary; "" if there are no figures."""
    results = [result for result in results if result.seeds()]
    if not results:
        return ""
    summary = summarise(results)
    parts = [_errors(results), _learners(summary), *_in_words(results, summary)]
    return "\n\n".join(parts) + "\n"


def _errors(results: Sequence[TableResult]) -> str:
    names = results[0].learners
    heading = ["table", "rows", "features", "error", *(LEARNERS[name].label for name in names)]
    lines = []
    for result in results:
        means = {name: mean for name in names if (mean := result.mean(name)) is not None}
        best = min(means, key=lambda name: means[name], default="")
        measure = "log loss" if result.task == "classification" else "1 - R2"
        cells = [_error(result, name, is_best=name == best) for name in names]
        lines.append([result.name, f"{result.n_rows:,}", str(result.n_features), measure, *cells])
    return markdown_table(heading, lines)


def _error(result: TableResult, name: str, is_best: bool) -> str:
    mean, spread = result.mean(name), result.spread(name)
    if mean is None:
        return "failed"
    decimals = 3 if mean >= 0.01 else 4
    text = f"**{mean:.{decimals}f}**" if is_best else f"{mean:.{decimals}f}"
    return text if spread is None else f"{text} ± {spread:.{decimals}f}"


def _learners(summary: Summary) -> str:
    heading = ["", "mean rank", "a training"]
    ours = bool(summary.versus)
    if ours:
        heading += [f"error of {OURS} / its: median", "geometric mean", f"{OURS} better / worse"]
    heading.append("worse than trivial")
    lines = []
    for name, one in sorted(summary.learners.items(), key=lambda item: item[1].mean_rank):
        seconds = "" if one.seconds is None else duration(one.seconds)
        cells = [LEARNERS[name].label, f"{one.mean_rank:.2f}", seconds]
        cells += _versus_cells(summary.versus.get(name)) if ours else []
        lines.append([*cells, str(len(one.worse_than_trivial))])
    if BETTER_MLP in summary.versus:
        lines.append([BETTER_MLP, "", "", *_versus_cells(summary.versus[BETTER_MLP]), ""])
    return markdown_table(heading, lines)


def _versus_cells(versus: Versus | None) -> list[str]:
    if versus is None or versus.median_ratio is None or versus.geometric_mean_ratio is None:
        return ["", "", ""]
    ratios = [f"{versus.median_ratio:.2f}", f"{versus.geometric_mean_ratio:.2f}"]
    return [*ratios, f"{len(versus.better)} / {len(versus.worse)} of {versus.n_tables}"]


def _in_words(results: Sequence[TableResult], summary: Summary) -> list[str]:
    """Return the tables that the counts are of, the trainings that failed, and the definitions."""
    lines = []
    if BETTER_MLP in summary.versus:
        better, worse = summary.versus[BETTER_MLP].better, summary.versus[BETTER_MLP].worse
        lines.append(f"{OURS} is worse than the {BETTER_MLP} on {_names(worse)}, better on {_names(better)}.")
    if OURS in summary.learners:
        lines.append(
            f"{OURS} is worse than the trivial model on {_names(summary.learners[OURS].worse_than_trivial)}."
        )
    for name, one in summary.learners.items():
        reasons = [f"{it.name} ({it.problem(name)})" for it in results if it.name in one.failed]
        if reasons:
            lines.append(f"{LEARNERS[name].label} failed on {'; '.join(reasons)}.")
    counts = {len(result.seeds()) for result in results}
    seeds = f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else count(min(counts), "seed")
    rows = f"Mean ± standard deviation of {seeds}, each with another fifth of the rows held out."
    return [*lines, f"{rows} {DEFINITIONS}"]


def _names(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"
