"""The figures of tuning: what became of each hyperparameter, beside the validation loss that moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.plots._figures import _quiet_log_axis, _title
from metafast.plots._style import COLORS, MARKERS, figure, ordered_colors, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMED = 8  # lines with a label of their own; more become a band


def hyperparameter_trajectories(
    state: Mapping[str, Any],
    validation: Sequence[tuple[int, float]] = (),
    *,
    title: str | None = None,
    xlabel: str = "training step",
) -> Figure:
    """Values of tuned hyperparameters over training, one panel each, with the validation loss in a panel before them.

    A hyperparameter with up to 8 values has a line for each, one with more the mean and the range of all. A panel
    whose values are positive and span more than a factor of 5 has a logarithmic axis. Momentum and betas are drawn as
    one minus their value, because that is what counts, and how they are learned.

    Args:
        state: `tuner.state`: name to `metafast.tune.Tuned`.
        validation: `tuner.validation`: pairs of step and loss. Left out if empty.
        title: above the figure.
        xlabel: of the horizontal axes.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no such state.
        ValueError: no hyperparameters.

    Example:
        >>> from metafast.tune import Tuned
        >>> lr = Tuned("global", {"all": 0.1}, [(0, [0.001]), (10, [0.01]), (20, [0.1])])
        >>> plot = hyperparameter_trajectories({"lr": lr}, [(10, 2.0), (20, 1.0)])
        >>> [axes.get_title(loc="left") for axes in plot.axes]
        ['validation loss', 'lr']
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be tuner.state, a mapping of names, got {type(state).__name__}")
    if not state:
        raise ValueError("state must have at least one hyperparameter, got none")
    for name, tuned in state.items():
        if not hasattr(tuned, "history") or not hasattr(tuned, "values"):
            raise TypeError(f"state[{name!r}] must be a metafast.tune.Tuned, got {type(tuned).__name__}")
    with style():
        plot, axes = _panels(len(state) + bool(validation), xlabel)
        if validation:
            steps, losses = np.asarray(validation, dtype=np.float64).T
            axes[0].plot(steps, losses, color="#000000")
            axes[0].set_title("validation loss")
            _log_if_wide(axes[0], losses)
        for ax, (name, tuned) in zip(axes[bool(validation) :], state.items(), strict=True):
            _trajectory(ax, name, tuned)
        _title(plot, title)
    return plot


def population_schedules(result: Any, *, title: str | None = None, xlabel: str = "training step") -> Figure:
    """What a population has tried: its values at the end of each leg, and a panel for each hyperparameter.

    The past of the best member, through those that it took over, is drawn in colour, all others in grey.

    Args:
        result: a `metafast.tune.population.PopulationResult`.
        title: above the figure.
        xlabel: of the horizontal axes.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no such result.

    Example:
        >>> from pathlib import Path
        >>> from metafast.tune.population import Leg, PopulationResult
        >>> legs = [Leg(0, 0, 0, 10, {"layers": 2}, 0, None, 0.5), Leg(1, 0, 0, 10, {"layers": 3}, 0, None, 0.4)]
        >>> plot = population_schedules(PopulationResult(Path("runs"), legs, "min"))
        >>> [axes.get_title(loc="left") for axes in plot.axes]
        ['value', 'layers']
    """
    if not (hasattr(result, "legs") and hasattr(result, "lineage")):
        raise TypeError(f"result must be a metafast.tune.population.PopulationResult, got {type(result).__name__}")
    legs = [leg for leg in result.legs if leg.value is not None]
    past = result.lineage()
    names = list(past[-1].config)
    with style():
        plot, axes = _panels(1 + len(names), xlabel)
        ends = {(leg.member, leg.stop): leg.value for leg in legs}
        for leg in legs:
            before = ends.get((leg.member if leg.source is None else leg.source, leg.start))
            steps, values = (
                ([leg.stop], [leg.value]) if before is None else ([leg.start, leg.stop], [before, leg.value])
            )
            axes[0].plot(steps, values, color="#BBBBBB", marker=".", linewidth=1)
        axes[0].plot([leg.stop for leg in past], [leg.value for leg in past], color=COLORS[0], marker="o")
        axes[0].set_title("value")
        for ax, name in zip(axes[1:], names, strict=True):
            ax.set_title(name)
            heights = _heights(ax, [leg.config[name] for leg in legs])
            starts, stops = [leg.start for leg in legs], [leg.stop for leg in legs]
            ax.hlines(heights, starts, stops, color="#BBBBBB", linewidth=1)
            of = {(leg.member, leg.number): height for leg, height in zip(legs, heights, strict=True)}
            steps = [step for leg in past for step in (leg.start, leg.stop)]
            ax.plot(steps, [of[leg.member, leg.number] for leg in past for _ in range(2)], color=COLORS[0])
        _title(plot, title)
    return plot


@dataclass(frozen=True)
class CostPanel:
    """A panel of `metric_by_cost`.

    Args:
        points: label to `(cost, values)`, a value per seed: drawn as their mean and range.
        courses: label to `(costs, values)`, such as the best of a search so far: drawn as steps.
        levels: label to a value that costs nothing: a dashed line.
        ylabel: the metric.

    Example:
        >>> CostPanel({"static": (1.0, [0.5, 0.6])}).courses
        {}
    """

    points: Mapping[str, tuple[float, Sequence[float]]]
    courses: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    ylabel: str = ""


def metric_by_cost(
    panels: Mapping[str, CostPanel], *, title: str | None = None, xlabel: str = "cost (static trainings)"
) -> Figure:
    """What methods reached against what they cost, with the course of searches; a panel for each experiment.

    Args:
        panels: title to panel. Labels that panels share have one colour and one entry in the legend.
        title: above the figure.
        xlabel: of the horizontal axes, which are logarithmic.

    Returns:
        The figure; the legend stands below the panels.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no `CostPanel`.
        ValueError: no panels, a label without values, unequal lengths, or a cost that is not positive.

    Example:
        >>> panel = CostPanel({"adaptive": (1.2, [0.8, 0.9])}, {"search": ([1, 2], [0.6, 0.7])}, ylabel="accuracy")
        >>> plot = metric_by_cost({"digits": panel})
        >>> plot.axes[0].get_xscale(), plot.axes[0].get_ylabel()
        ('log', 'accuracy')
    """
    if not isinstance(panels, Mapping) or not all(isinstance(panel, CostPanel) for panel in panels.values()):
        raise TypeError(f"panels must map a title to a metafast.plots.CostPanel, got {type(panels).__name__}")
    if not panels:
        raise ValueError("panels must have at least one panel, got none")
    for name, panel in panels.items():
        _check_costs(name, panel)
    lines = list(dict.fromkeys(label for panel in panels.values() for label in panel.courses))
    points = list(dict.fromkeys(label for panel in panels.values() for label in panel.points))
    colors = {
        label: COLORS[i % len(COLORS)] for i, label in enumerate([*lines, *(p for p in points if p not in lines)])
    }
    with style():
        from matplotlib.ticker import LogLocator, NullLocator

        plot, axes = _panels(len(panels), xlabel, share=False)
        for ax, (name, panel) in zip(axes, panels.items(), strict=True):
            ax.set_title(name)
            ax.set_ylabel(panel.ylabel)
            ax.set_xscale("log")
            for label, level in panel.levels.items():
                ax.axhline(level, color="#888888", linestyle="--", linewidth=1.2, label=label)
            for label, (costs, values) in panel.courses.items():
                ax.step(costs, values, where="post", color=colors[label], alpha=0.7, label=f"{label}, so far")
            for label, (cost, values) in panel.points.items():
                mean, marker = float(np.mean(values)), MARKERS[points.index(label) % len(MARKERS)]
                ax.vlines(cost, min(values), max(values), color=colors[label], linewidth=1.5)
                ax.plot(
                    cost, mean, color=colors[label], marker=marker, markeredgecolor="white", linestyle="", label=label
                )
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        found = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        plot.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(3, len(found)))
        width, height = plot.get_size_inches()
        plot.set_size_inches(max(width, 6.0), height + 0.25 * -(-len(found) // 3))
        _title(plot, title)
    return plot


def _check_costs(name: str, panel: CostPanel) -> None:
    for label, (cost, values) in panel.points.items():
        if not len(values) or not cost > 0:
            raise ValueError(
                f"points[{label!r}] of {name!r} must be (cost above 0, at least one value), "
                f"got {(cost, list(values))!r}"
            )
    for label, (costs, values) in panel.courses.items():
        if len(costs) != len(values) or not len(costs) or not all(cost > 0 for cost in costs):
            raise ValueError(
                f"courses[{label!r}] of {name!r} must be costs above 0 and as many values, "
                f"got {len(costs)} and {len(values)}"
            )


def _panels(count: int, xlabel: str, share: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, which may share their horizontal axis."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    plot = figure(3.3 * columns + 0.4, 2.5 * rows + 0.6)
    axes = list(plot.subplots(rows, columns, sharex=share, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[max(0, count - columns) : count]:
        ax.set_xlabel(xlabel)
        ax.tick_params(labelbottom=True)
    return plot, axes[:count]


def _heights(ax: Axes, values: Sequence[Any]) -> list[float]:
    """Where to draw values: numbers as they are, others one above the other by name."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        _log_if_wide(ax, np.asarray(values, dtype=np.float64))
        if len(set(values)) <= MOST_NAMED:
            ax.set_yticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
        return list(values)
    names = sorted({str(value) for value in values})
    ax.set_yticks(range(len(names)), names)
    return [float(names.index(str(value))) for value in values]


def _trajectory(ax: Axes, name: str, tuned: Any) -> None:
    steps = [step for step, _ in tuned.history]
    values = np.asarray([row for _, row in tuned.history], dtype=np.float64)  # [updates, units]
    flipped = name in ("momentum", "beta1", "beta2")
    if flipped:
        values = 1 - values
    ax.set_title(f"1 − {name}" if flipped else name)
    if values.shape[1] > MOST_NAMED:
        ax.fill_between(steps, values.min(1), values.max(1), color=COLORS[0], alpha=0.15, linewidth=0)
        ax.plot(steps, values.mean(1), color=COLORS[0])
        ax.text(0.03, 0.95, f"mean and range of {values.shape[1]}", transform=ax.transAxes, va="top", fontsize=8.5)
    else:
        colors = ordered_colors(values.shape[1]) if values.shape[1] > 1 else [COLORS[0]]
        labels = list(tuned.values) if len(tuned.values) == values.shape[1] else ["mean"]
        for column, label, color in zip(values.T, labels, colors, strict=True):
            ax.plot(steps, column, color=color, label=label)
        if values.shape[1] > 1:
            ax.legend(fontsize=8, handlelength=1.2)
    _log_if_wide(ax, values)


def _log_if_wide(ax: Axes, values: Any) -> None:
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 5 * finite.min():
        ax.set_yscale("log")
        _quiet_log_axis(ax.yaxis)
