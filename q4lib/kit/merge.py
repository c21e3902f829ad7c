"""`q4 class`: the logs of a class, wherever they lie in what was handed in, as one ablation with intervals."""

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from ..files import write_whole
from ..log import RunError, parse_log
from ..recipes import Recipe
from .classroom import ARMS, EPOCHS, class_recipe, finished
from .records import mean_interval

FULL = "full method"
LARGEST = 20_000_000  # bytes; a log of the class has 30,000
LeftOut = list[tuple[str, str]]


class Entry(NamedTuple):
    """A run that counts: where its log lies, its arm and seed, test accuracy in percent at its end, its epochs."""

    where: str
    arm: str
    seed: int
    accuracy: float
    epochs: list[dict[str, Any]]


def merge(folder: Path, out: Path) -> None:
    """Print the ablation that the logs of a class make, with what was left out and why, and draw it."""
    if not folder.exists():
        raise RunError(f"{folder} is not there: give the folder, or the zip, of what the class handed in")
    entries, left_out = merged(folder)
    print(f"{len(entries)} runs count, {len(left_out)} left out")
    for where, why in left_out:
        print(f"  {where}: {why}")
    if not entries:
        raise RunError(f"in {folder} there is no log that counts: students hand in the log.jsonl of exercise 6.6")
    print(f"\n{table(entries)}")
    content = io.BytesIO()
    plot_class(entries).savefig(content, dpi=150)
    write_whole(out, content.getvalue())
    print(f"\npicture: {out}")


def merged(folder: Path) -> tuple[list[Entry], LeftOut]:
    """The runs under a folder, or in a zip, that count; and where the other logs lie, each with the reason."""
    entries: dict[tuple[str, int], Entry] = {}
    left_out: LeftOut = []
    for where, content in _logs(folder, left_out):
        try:
            entry = _entry(where, content)
            first = entries.setdefault((entry.arm, entry.seed), entry)
            if first is not entry:
                what = "the same run as" if first.epochs == entry.epochs else "another run of the arm and seed of"
                raise RunError(f"{what} {first.where}")
        except RunError as error:
            left_out.append((where, str(error)))
    return list(entries.values()), left_out


def _logs(path: Path, left_out: LeftOut) -> Iterator[tuple[str, bytes]]:
    """Name and content of each log at any depth, zips opened, in the order of their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if not _is_log(name) or not file.is_file():
            continue
        try:
            content = file.read_bytes()
        except OSError as error:
            left_out.append((name, f"it cannot be read ({error.strerror})"))
            continue
        yield from _unpacked(name, content, left_out)


def _is_log(name: str) -> bool:
    last = name.rpartition("/")[2]
    # macOS puts a ._log.jsonl beside each file of a zip; browsers make log (1).jsonl and log.jsonl.txt.
    return not last.startswith(".") and (".jsonl" in last or last.endswith(".zip"))


def _unpacked(where: str, content: bytes, left_out: LeftOut) -> Iterator[tuple[str, bytes]]:
    if not where.endswith(".zip"):
        yield where, content
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                name = f"{where}/{member.filename}"
                if _is_log(member.filename) and member.file_size > LARGEST:
                    left_out.append((name, f"it has {member.file_size:,} bytes, far more than a log"))
                elif _is_log(member.filename):
                    yield from _unpacked(name, archive.read(member), left_out)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        left_out.append((where, f"it cannot be unpacked ({error})"))


def _entry(where: str, content: bytes) -> Entry:
    try:
        facts, epochs = parse_log(content.decode("utf-8-sig"))
    except ValueError as error:
        raise RunError(f"it is not a whole log of a run ({error})") from None
    recipe = finished(facts, epochs)
    return Entry(where, _arm(recipe), recipe.seed, epochs[-1]["test_acc"], epochs)


def _arm(recipe: Recipe) -> str:
    """The arm whose recipe this is, whatever its seed. RunError says what is not as in the nearest one."""
    got, departures = asdict(recipe), {}
    for arm in ARMS:
        wanted = asdict(class_recipe(arm, recipe.seed))
        departures[arm] = [f"{key} is {got[key]}, not {wanted[key]}" for key in got if got[key] != wanted[key]]
    arm = min(departures, key=lambda arm: len(departures[arm]))
    if departures[arm]:
        raise RunError(f"it is not a run of the class: {', '.join(departures[arm])}")
    return arm


def by_arm(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """The accuracies of each arm, in the order of the paper's table; those of arms that nobody trained are empty."""
    return {arm: [entry.accuracy for entry in entries if entry.arm == arm] for arm in ARMS}


def half_width(values: Sequence[float]) -> float:
    """Half the width of a mean's 95 % interval; infinite where nothing shows a spread: one run, or all alike."""
    return mean_interval(values)[1] if len(set(values)) > 1 else math.inf


def difference(arm: Sequence[float], full: Sequence[float]) -> tuple[float, float]:
    """One mean minus the other, seeds unpaired, and half the width of its interval.

    The half widths of the two means are taken together as the sides of a right triangle.
    """
    return mean(arm) - mean(full), math.hypot(half_width(arm), half_width(full))


def verdicts(found: Mapping[str, Sequence[float]]) -> dict[str, tuple[str, str]]:
    """Of each arm the difference to the full method with its interval, and what that says, both in words."""
    return {arm: _verdict(arm, values, found[FULL]) for arm, values in found.items()}


def _verdict(arm: str, values: Sequence[float], full: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", "nobody trained it"
    if arm == FULL or not full:
        return "", "" if arm == FULL else "no full method"
    points, half = difference(values, full)
    if math.isinf(half):
        return f"{points:+.2f}", "no spread to go by"
    word = "cannot tell" if abs(points) <= half else "better" if points > 0 else "worse"
    return f"{points:+.2f} ± {half:.2f}", word


def table(entries: Sequence[Entry]) -> str:
    """The ablation as lines of text: runs and mean of each arm, its difference to the full method, the paper's."""
    from .figures.clipping import TABLE_VII

    found = by_arm(entries)
    said = verdicts(found)
    lines = [f"{'arm':24} runs  {'mean':>8}  {'difference':>14}  {'what it says':18}  paper"]
    for arm, values in found.items():
        middle = f"{mean(values):.2f} %" if values else ""
        theirs = f"{TABLE_VII[arm]:.2f} %" if arm == FULL else f"{TABLE_VII[arm] - TABLE_VII[FULL]:+.2f}"
        lines.append(f"{arm:24} {len(values):4}  {middle:>8}  {said[arm][0]:>14}  {said[arm][1]:18}  {theirs}")
    return "\n".join([*lines, "", *NOTES])


NOTES = (
    f"test accuracy on 360 digits after {EPOCHS} epochs; differences in points, with the half width of a 95 % interval",
    "cannot tell: 0 lies in the interval; that is no proof that the part does nothing",
    "even if no part did anything, up to one class in five would see one of the four intervals exclude 0",
    "paper: table VII, CIFAR-10, another network, 100 epochs, one run a row, no interval",
)


def plot_class(entries: Sequence[Entry]) -> Any:
    """A figure for the projector: a point a student, means with intervals, and the paper's table VII beside them."""
    import matplotlib
    from matplotlib.figure import Figure

    from .figures.clipping import TABLE_VII
    from .plots import BLUE, GREY, ORANGE, STYLE

    found = by_arm(entries)
    said = verdicts(found)
    with matplotlib.rc_context(STYLE | {"font.size": 18}):
        figure = Figure(figsize=(12.8, 7.2), layout="constrained")
        ours, theirs = figure.subplots(1, 2, sharey=True, width_ratios=(7, 3))
        for row, (arm, values) in enumerate(found.items()):
            colour = BLUE if arm == FULL else ORANGE
            # Equal accuracies would hide each other: each point a little below the one before it.
            heights = [row - 0.05 - 0.25 * i / max(1, len(values) - 1) for i in range(len(values))]
            ours.plot(sorted(values), heights, "o", color=colour, alpha=0.5, markersize=9)
            half = half_width(values) if arm == FULL else difference(values or [0], found[FULL] or [0])[1]
            if math.isfinite(half):
                style = {"fmt": "D", "color": colour, "capsize": 9, "linewidth": 3, "markersize": 11}
                ours.errorbar(mean(values), row + 0.15, xerr=half, **style)
            words = "\n".join(said[arm]).strip() or f"{mean(values):.2f} %"
            ours.annotate(words, (1.02, row), xycoords=("axes fraction", "data"), va="center")
        if found[FULL]:
            ours.axvline(mean(found[FULL]), color=BLUE, linestyle="--", zorder=0)
        ours.set(yticks=range(len(found)), yticklabels=[arm.replace(" ", "\n", 1) for arm in found])
        ours.set_xlim(right=min(ours.get_xlim()[1], 100.5))
        ours.set(
            xlabel="test accuracy (%),\nmean and 95 % interval of the difference",
            title=f"our class: {len(entries)} runs, digits",
            ylim=(len(found) - 0.5, -0.5),
        )
        losses = [TABLE_VII[arm] - TABLE_VII[FULL] for arm in found]
        theirs.barh(range(len(found)), losses, height=0.4, color=GREY)
        for row, (arm, loss) in enumerate(zip(found, losses, strict=True)):
            theirs.text(loss - 0.4, row, f"{loss:+.1f}" if loss else f"{TABLE_VII[arm]} %", ha="right", va="center")
        theirs.set(title="the paper", xlabel="points on CIFAR-10,\none run each", xlim=(1.6 * min(losses), 1))
        for axes in (ours, theirs):
            axes.grid(axis="y", visible=False)
            axes.set_axisbelow(True)
    return figure
