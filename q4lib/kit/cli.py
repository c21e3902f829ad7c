"""The command line: `q4 train`, `transfer`, `eval`, `predict`, `data`, `doctor`, `bench`, and what serves lessons."""

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import data
from ..download import DownloadError
from ..files import FileError, write_whole
from ..pack import load_model
from ..train import RECIPES, Recipe, RunError, evaluate, fit, read_log, reported, run_name
from . import lessons
from .build import build

EPILOG = """examples:
  q4 train                                     scanned digits, half a minute, no network
  q4 train paper --epochs 7                    the paper's recipe on CIFAR-10
  q4 train digits --bits 2 --set lr=0.01       a departure from a recipe, in a run folder of its own
  q4 eval ~/.q4/runs/digits-digits-b4-s0       a run or a packed file, measured again on the test set
  q4 predict model.safetensors cat.png         the three likeliest classes
  q4 run 01 02 --preset smoke --out /tmp/out   two lessons, executed: notebooks, HTML pages, a table of minutes"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when all is well, 1 after one sentence on what is wrong, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    try:
        options.pop("command")(**options)
    except (data.DataError, DownloadError, FileError, RunError, ValueError) as error:
        print(f"q4: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("q4: stopped; the same command goes on from its checkpoint", file=sys.stderr)
        return 130
    return 0


def train(recipe: str, **options: Any) -> None:
    """Train, or go on with, one run; draw its curve after every epoch."""
    _train(RECIPES, fit, recipe, **options)


def transfer(recipe: str, **options: Any) -> None:
    """Train, or go on with, one arm of transfer learning, after the backbones that it begins with."""
    from ..transfer import TRANSFERS, transfer

    _train(TRANSFERS, transfer, recipe, **options)


def _train(
    recipes: Mapping[str, Recipe],
    fit: Callable[..., Path],
    recipe: str,
    settings: list[str],
    out: Path | None,
    device: str | None,
    **changes: Any,
) -> None:
    if recipe not in recipes:
        raise ValueError(
            f"no recipe is called {recipe!r}{data.nearest(recipe, recipes)}: there are {', '.join(recipes)}"
        )
    chosen = {key: value for key, value in changes.items() if value is not None}
    planned = replace(recipes[recipe], **chosen | dict(_setting(text, type(recipes[recipe])) for text in settings))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = out or data.home() / "runs" / run_name(planned, device)
    print(f"run folder: {folder}", flush=True)
    if planned.schedule == "linear" and planned.epochs > planned.schedule_epochs:
        end = planned.schedule_epochs
        print(
            f"its rate is zero after epoch {end}: --set schedule_epochs={planned.epochs} would stretch it", flush=True
        )
    fit(planned, folder, device=device, on_epoch=lambda run: _draw(run, every=30))
    _draw(folder)
    print(_summary(folder))


def eval_(path: Path) -> None:
    """Accuracy of a run's model or a packed file on its data's test set."""
    file = _model_file(path)
    model, facts = load_model(file)
    images = data.load(facts["data"])
    loss, accuracy = evaluate(model, images.x_test, images.y_test, facts["data"])
    print(f"{file}: {accuracy:.2f} % of {len(images.y_test)} test images of {facts['data']}, loss {loss:.4f} (fp32)")


def predict(path: Path, pictures: list[Path]) -> None:
    """The three likeliest classes of each picture, by a run's model or a packed file."""
    model, facts = load_model(_model_file(path))
    for picture in pictures:
        with torch.inference_mode():
            share = model(data.normalize(data.read_picture(picture), facts["data"])).softmax(1)[0]
        top = ", ".join(f"{facts['classes'][i]} {100 * share[i]:.1f} %" for i in share.argsort(descending=True)[:3])
        print(f"{picture}: {top}")


def _model_file(path: Path) -> Path:
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise FileError(f"{path} has no model.safetensors: no run was finished there")
    return file


def data_(action: str, names: list[str]) -> None:
    """Get data sets, check that each is whole, or say where it lies."""
    for name in names or (["digits", "cifar10", "cifar100"] if action == "where" else ["cifar10"]):
        if action == "where":
            print(f"{name}: {data.where(name) or 'not here yet: `q4 data get ' + name + '` downloads it'}")
        elif action == "check" and data.where(name) is None:
            raise data.DataError(f"{name} is not here yet: `q4 data get {name}` downloads it")
        else:
            images = data.load(name)
            print(f"{name}: {len(images.y_train)} + {len(images.y_test)} images, whole, in {data.where(name)}")


def doctor() -> None:
    """What this machine can do, and how long each recipe takes here."""
    from .doctor import main

    main()


def bench(what: str, **options: Any) -> None:
    """Ratios of speed and memory, measured here; or how fast the lessons' figures follow their sliders."""
    from . import bench, bench_widgets, breakdown

    if what == "widgets":
        bench_widgets.main()
        return
    bench.main(**options)
    print()
    breakdown.main()


def offline(**options: Any) -> None:
    """Pack the course for a room without a network: wheels, lessons, exercises, data, an installer."""
    from . import offline

    offline.offline(**options)


def grade(**options: Any) -> None:
    """Grade what a class handed in: a gradebook, a feedback page a student, and who needs a look by hand."""
    from . import grade

    grade.grade(**options)


def class_(**options: Any) -> None:
    """Merge the logs that a class handed in into one ablation: a table, and a picture for the projector."""
    from .merge import merge

    merge(**options)


def _draw(folder: Path, every: float = 0.0) -> None:
    """Draw `curve.png` anew if its log has grown since, but not more often than `every` seconds."""
    picture, log = folder / "curve.png", folder / "log.jsonl"
    if picture.exists() and log.stat().st_mtime < picture.stat().st_mtime + every:
        return
    from .plots import plot_run

    content = io.BytesIO()
    plot_run(folder).savefig(content, dpi=110)
    write_whole(picture, content.getvalue())


def _summary(folder: Path) -> str:
    run, epochs = read_log(folder)
    recipe = run["recipe"]
    line = reported(epochs, recipe["select"])
    how = "the last epoch" if recipe["select"] == "last" else "the epoch best on the validation split"
    size = (folder / "model.safetensors").stat().st_size
    of = "validation" if line["test_acc"] is None else "test"
    accuracy = line["val_acc" if line["test_acc"] is None else "test_acc"]
    mirrored = f", {line['mirrored_acc']:.2f} % with their mirror images" if "mirrored_acc" in line else ""
    mirrored += f", {line['six_views_acc']:.2f} % in six views" if "six_views_acc" in line else ""
    return (
        f"{accuracy:.2f} % on the {of} images of {recipe['data']}{mirrored} at {how} "
        f"({line['epoch']} of {len(epochs)}), one seed ({recipe['seed']}), {run['precision']}, "
        f"{sum(line['seconds'] for line in epochs):.0f} s of training on {run['processor']}\n"
        f"{folder}: model.safetensors ({size / 1000:.0f} kB, {recipe['bits']}-bit weights), log.jsonl, curve.png"
    )


def _setting(text: str, recipe: type[Recipe]) -> tuple[str, Any]:
    """`key=value` as a field of a recipe and a value of its type."""
    kinds = {field.name: field.type for field in fields(recipe) if field.name != "name"}
    key, equals, value = text.partition("=")
    if key not in kinds or not equals:
        hint = "" if key in kinds else data.nearest(key, kinds)
        raise ValueError(f"--set takes key=value, got {text!r}{hint}; the keys are {', '.join(kinds)}")
    try:
        return key, READ[kinds[key]](value)
    except (KeyError, TypeError, ValueError):
        kind = getattr(kinds[key], "__name__", str(kinds[key]))
        raise ValueError(f"--set {key} takes a value of type {kind}, got {value!r}") from None


def _pair(first: str, second: str) -> tuple[float, float]:
    return float(first), float(second)


READ: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int | None: lambda text: None if text.lower() == "none" else int(text),
    float | None: lambda text: None if text.lower() == "none" else float(text),
    tuple[float, float]: lambda text: _pair(*text.strip("()").split(",")),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="q4", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        added.set_defaults(command=function)
        return added

    run = command("train", train)
    run.add_argument("recipe", nargs="?", default="digits", metavar="RECIPE", help=f"{', '.join(RECIPES)} (digits)")
    run.add_argument("--model", help="vgg4bit or simpleresnet4bit")
    arm = command("transfer", transfer)
    arm.add_argument("recipe", metavar="ARM", help="repnet, last-layer, repnet-pruned, ...; a wrong one lists them all")
    for new in (run, arm):
        new.add_argument("--data", help="digits, cifar10 or cifar100")
        new.add_argument("--bits", type=int, help="2..8, or 32 for the FP32 twin")
        new.add_argument("--epochs", type=int, help="end the run earlier or later; its schedule stays as it is")
        new.add_argument("--seed", type=int)
        new.add_argument("--val", type=int, help="images held out of the training set for validation")
        new.add_argument("--select", help="report the last epoch, or the best on the validation split: last or val")
        new.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="any other")
        new.add_argument("--out", type=Path, help="the run folder itself")
        new.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one, if none is named")
    measure = command("eval", eval_)
    measure.add_argument("path", type=Path, metavar="RUN|FILE")
    guess = command("predict", predict)
    guess.add_argument("path", type=Path, metavar="RUN|FILE")
    guess.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE", help="of any size; its middle square counts")
    sets = command("data", data_)
    sets.add_argument("action", choices=("get", "check", "where"))
    sets.add_argument("names", nargs="*", metavar="NAME", help="digits, cifar10, cifar100")
    command("doctor", doctor)
    ratios = command("bench", bench)
    ratios.add_argument("what", nargs="?", default="training", choices=("training", "widgets"), help="(training)")
    ratios.add_argument("--pairs", type=int, default=30, help="rounds, each of one step of every arm (30 or more)")
    execute = command("run", lessons.run)
    execute.add_argument("names", nargs="*", metavar="LESSON", help="01 or 01_quantization; all, if none is named")
    execute.add_argument("--preset", default="smoke", help="smoke (seconds, offline), class or full (smoke)")
    execute.add_argument("--out", type=Path, metavar="DIR", help="where all of it goes ($Q4_HOME/lessons)")
    execute.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command("lab", lessons.lab)
    store = command("refresh", lessons.refresh)
    store.add_argument("names", nargs="*", metavar="LESSON", help="all, if none is named")
    store.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    make = command("build", build)
    make.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    pack = command("offline", offline)
    pack.add_argument("folder", type=Path, metavar="DIR", help="a folder that is not there yet")
    pack.add_argument("--without", default="", metavar="NAME,NAME", help="packages the room's Python has: torch, say")
    marks = command("grade", grade)
    marks.add_argument("submissions", type=Path, metavar="SUBMISSIONS", help="a folder, or the zip of Moodle or Canvas")
    marks.add_argument(
        "--roster", type=Path, metavar="CSV", help="Moodle's or Canvas' list, or columns id, name, email"
    )
    marks.add_argument("--out", type=Path, metavar="DIR", default=Path("grades"), help="where all of it goes (grades)")
    marks.add_argument("--seconds", type=int, default=300, help="that a cell may take; a submission five times (300)")
    marks.add_argument("--memory", type=float, default=4.0, metavar="GB", help="that a submission may take (4)")
    merge = command("class", class_)
    merge.add_argument("folder", type=Path, metavar="FOLDER", help="or a zip: run folders, logs, zips, at any depth")
    merge.add_argument("--out", type=Path, metavar="PNG", default=Path("class.png"), help="the picture (class.png)")
    command("link", lessons.link).add_argument("repository", metavar="OWNER/REPO")
    return parser


if __name__ == "__main__":
    sys.exit(main())
