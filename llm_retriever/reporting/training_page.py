"""Training curves as one self-contained HTML page: no script, nothing fetched."""

from __future__ import annotations

from llm_retriever.progress import seconds_as_text
from llm_retriever.reporting.charts import curve_plot
from llm_retriever.reporting.report import pages
from llm_retriever.training.train import TrainingLog


def training_html(log: TrainingLog, title: str) -> str:
    """A self-contained HTML page that plots loss and learning rate over the updates.

    The loss is drawn twice: as it was, and as a moving average.

    Example:
        >>> steps = [{"step": i, "loss": 2.0 / i, "learning_rate": 0.1} for i in (1, 2)]
        >>> training_html(TrainingLog(steps, 1.0, 8), "tune").count("<svg")
        2
    """
    lines = {key: [(entry["step"], entry[key]) for entry in log.steps] for key in ("loss", "learning_rate")}
    smooth = list(zip((x for x, _ in lines["loss"]), _moving_average([y for _, y in lines["loss"]]), strict=True))
    plots = [curve_plot(lines["loss"], "update", "loss", smooth)]
    plots.append(curve_plot(lines["learning_rate"], "update", "learning rate"))
    return pages().get_template("training.html.jinja").render(title=title, facts=_facts(log), plots=filter(None, plots))


def _facts(log: TrainingLog) -> dict[str, str]:
    numbers = log.metrics()
    rows = {
        "updates": f"{numbers['updates']:,}",
        "training pairs seen": f"{log.examples:,}",
        "time": seconds_as_text(log.seconds),
        "pairs per second": f"{numbers.get('pairs_per_second', 0):.3g}",
    }
    if log.steps:
        rows["loss, first and last tenth of the updates"] = f"{numbers['loss_start']:.4g} → {numbers['loss_end']:.4g}"
    return rows


def _moving_average(values: list[float]) -> list[float]:
    """An exponential moving average over about a twentieth of the values, corrected for its start."""
    keep, total, weight, smooth = 1 - 1 / max(1.0, len(values) / 20), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + 1 - keep
        smooth.append(total / weight)
    return smooth
