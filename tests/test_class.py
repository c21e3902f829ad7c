"""The class as the cluster: what a name draws, a prediction before its run, and all logs merged into one merge."""

import io
import json
import math
import zipfile
from collections import Counter
from dataclasses import asdict

import matplotlib.image
import nbformat
import pytest
import solving

from q4lib.kit import check, classroom, cli, merge
from q4lib.kit.checks.exercise06_run import BUDGET, TARGET
from q4lib.kit.classroom import ARMS, class_recipe, class_run, draw, noted, take_part
from q4lib.kit.figures.clipping import TABLE_VII
from q4lib.log import read_log
from q4lib.train import RECIPES, fit


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Runs of two epochs, without the pictures that grow in a notebook."""
    monkeypatch.setattr(classroom, "EPOCHS", 2)
    monkeypatch.setenv("Q4_WIDGETS", "0")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two runs that were really trained: folder by arm."""
    root = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classroom, "EPOCHS", 2)
        arms = ("full method", "without per-layer scale")
        return {arm: fit(class_recipe(arm, 7), root / arm, device="cpu", progress=False) for arm in arms}


@pytest.fixture
def log(real):
    """The text of a log as a real run writes it, but of any arm and seed, with so many of 360 pictures right."""
    facts, epochs = read_log(real["full method"])

    def text(arm, seed, right, change=lambda facts, epochs: None):
        mine = json.loads(json.dumps(facts | {"recipe": asdict(class_recipe(arm, seed))}))
        lines = [dict(line) for line in epochs]
        lines[-1]["test_acc"] = 100 * right / 360
        change(mine, lines)
        return "".join(json.dumps(line) + "\n" for line in [{"run": mine}, *lines])

    return text


def test_the_arms_are_the_rows_of_the_paper_s_table():
    assert list(ARMS) == list(TABLE_VII)
    full = asdict(class_recipe("full method", 3))
    for arm, changes in ARMS.items():
        assert asdict(class_recipe(arm, 3)) == full | changes, arm
    assert full["soft_clip"] and full["grad_clip"] and not full["fixed_scale"]


def test_a_name_draws_the_same_everywhere():
    """The literal is a promise: a change would give each student of a running course another run."""
    assert draw("Ada Lovelace") == draw("  ada   LOVELACE") == ("without gradient clip", 59535)
    assert draw("Zoë") == draw("Zoe\u0308") != draw("Zoe")
    drawn = [draw(f"student {i}") for i in range(3000)]
    counts = Counter(arm for arm, _ in drawn)
    assert all(440 < counts[arm] < 560 for arm in list(ARMS)[1:]) and 900 < counts["full method"] < 1100
    assert len({seed for _, seed in drawn}) > 2900


def test_real_runs_are_merged(real, tmp_path, capsys):
    assert cli.main(["class", str(real["full method"].parent), "--out", str(tmp_path / "room.png")]) == 0
    printed = capsys.readouterr().out
    assert "2 runs count, 0 left out" in printed
    for arm, folder in real.items():
        row = next(line for line in printed.splitlines() if line.startswith(arm))
        assert f"{read_log(folder)[1][-1]['test_acc']:.2f} %" in row
    assert "no spread to go by" in printed
    assert matplotlib.image.imread(tmp_path / "room.png").shape[:2] == (1080, 1920)


def test_a_class_of_many(log, tmp_path, capsys):
    """By hand: full 97.5 ± 0.861, without soft clip 95.0 ± 0.861: -2.5 ± 1.217; and a part that does nothing."""
    handed_in = {
        "full method": [348, 351, 354, 351, 348, 354], "without soft clip": [342, 339, 345, 342, 339, 345],
        "without gradient clip": [351, 352, 350, 351], "standard AdamW": [300],
    }  # fmt: skip
    for arm, rights in handed_in.items():
        for seed, right in enumerate(rights):
            (tmp_path / f"{arm} {seed}").mkdir()
            (tmp_path / f"{arm} {seed}" / "log.jsonl").write_text(log(arm, seed, right))
    entries, left_out = merge.merged(tmp_path)
    assert len(entries) == 17 and not left_out
    said = merge.verdicts(merge.by_arm(entries))
    half = 2.5706 * math.sqrt(4 / 5) / math.sqrt(6) * (100 * 3 / 360) * math.sqrt(2)
    assert said == {
        "full method": ("", ""),
        "without soft clip": (f"-2.50 ± {half:.2f}", "worse"),
        "without per-layer scale": ("", "nobody trained it"),
        "without gradient clip": (said["without gradient clip"][0], "cannot tell"),
        "standard AdamW": ("-14.17", "no spread to go by"),
    }
    assert said["without gradient clip"][0].startswith("+0.00 ± ")
    merge.merge(tmp_path, tmp_path / "class.png")
    printed = capsys.readouterr().out
    for words in ("0 lies in the interval", "-4.91", "92.21 %", "without soft clip           6   95.00 %"):
        assert words in printed


def test_runs_that_are_all_alike_show_no_spread():
    """Two equal accuracies would make an interval of width 0, and any difference sure."""
    found = dict.fromkeys(ARMS, [90.0, 91.0, 92.0]) | {"standard AdamW": [80.0, 80.0]}
    assert merge.verdicts(found)["standard AdamW"] == ("-11.00", "no spread to go by")
    found["standard AdamW"] = [99.0, 99.2, 99.1]
    assert merge.verdicts(found)["standard AdamW"][1] == "better"


def field(name, value):
    return lambda facts, epochs: facts["recipe"].update({name: value})


def line(at, **values):
    return lambda facts, epochs: epochs[at].update(values)


BROKEN = [
    (lambda facts, epochs: epochs.pop(), "it has 1 of 2 epochs: it is not finished"),
    (lambda facts, epochs: epochs.pop(0), "epoch 1 is missing"),
    (lambda facts, epochs: epochs.append(epochs[-1]), "epoch 3 is missing in its log, or stands in another place"),
    (lambda facts, epochs: facts.pop("recipe"), "its recipe is none that this q4lib knows"),
    (lambda facts, epochs: epochs[0].pop("lr"), "a line of its log is damaged (KeyError: 'lr')"),
    (field("dropout", 0.2), "it is not a run of the class: dropout is 0.2, not 0.0"),
    (field("bits", 8), "bits is 8, not 4"),
    (field("bits", 9), "its recipe is none that this q4lib knows (bits must be 2..8"),
    (field("grad_clip", 1.0), "grad_clip is 1.0, not 0.5"),
    (field("lr", 0.01), "epoch 1 has the learning rate 0.005, where its recipe gives 0.01"),
    (lambda facts, epochs: facts.update(data_digest="0" * 64), "its images are not those of digits"),
    (line(1, test_acc=98.5), "its test_acc in epoch 2, 98.5 %, is no number of 360 images"),
    (line(1, test_acc=103.0), "is no number of 360 images"),
    (line(1, test_acc=None), "its test_acc in epoch 2 is None"),
    (line(1, test_acc="98"), "a line of its log is damaged"),
]


@pytest.mark.parametrize(("change", "says"), BROKEN, ids=[says[:30] for _, says in BROKEN])
def test_a_log_that_does_not_count_is_named(change, says, log, tmp_path):
    (tmp_path / "good.jsonl").write_text(log("full method", 1, 350))
    (tmp_path / "odd.jsonl").write_text(log("full method", 2, 350, change))
    entries, left_out = merge.merged(tmp_path)
    assert [entry.where for entry in entries] == ["good.jsonl"]
    assert [where for where, _ in left_out] == ["odd.jsonl"] and says in left_out[0][1]


def zipped(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return content.getvalue()


def test_logs_are_found_wherever_they_lie(log, tmp_path):
    """As browsers, mail, macOS, Windows and a course's website leave them: in folders, in zips, in zips of zips."""
    texts = [log("full method", seed, 350) for seed in range(6)]
    mac = {"__MACOSX__run__._log.jsonl": "\0\1", "run__log.jsonl": texts[0], "run__model.safetensors": "x"}
    inner = zipped(**mac)
    (tmp_path / "all.zip").write_bytes(zipped(**{"Ada_1__work.zip": inner, "Bob_2__log.jsonl": texts[1]}))
    (tmp_path / "Cleo" / "deep").mkdir(parents=True)
    (tmp_path / "Cleo" / "deep" / "log (1).jsonl").write_text(texts[2])
    (tmp_path / "Dan").mkdir()
    (tmp_path / "Dan" / "log.jsonl.txt").write_bytes(b"\xef\xbb\xbf" + texts[3].replace("\n", "\r\n").encode())
    (tmp_path / "Eve.zip").write_bytes(b"PK no zip")
    (tmp_path / "Fred.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "Gil.jsonl").write_text("")
    (tmp_path / "Hal.jsonl").write_text("[]\n3\n")
    (tmp_path / "Ida.jsonl").write_text(texts[1])
    (tmp_path / "Joe.jsonl").write_text(log("full method", 2, 340))
    (tmp_path / "notes.md").write_text("no log")
    entries, left_out = merge.merged(tmp_path)
    assert {entry.where: entry.seed for entry in entries} == {
        "Cleo/deep/log (1).jsonl": 2,
        "Dan/log.jsonl.txt": 3,
        "Ida.jsonl": 1,
        "all.zip/Ada_1/work.zip/run/log.jsonl": 0,
    }
    reasons = {
        "Eve.zip": "it cannot be unpacked",
        "Fred.jsonl": "it is not a whole log of a run ('utf-8'",
        "Gil.jsonl": "it is not a whole log of a run (not enough values",
        "Hal.jsonl": "it is not a whole log of a run (a line is not what a run writes",
        "Joe.jsonl": "another run of the arm and seed of Cleo/deep/log (1).jsonl",
        "all.zip/Bob_2/log.jsonl": "the same run as Ida.jsonl",
    }
    assert left_out == [(where, why) for where, why in left_out if why.startswith(reasons[where])]
    assert len(left_out) == len(reasons)
    assert [entry.seed for entry in merge.merged(tmp_path / "all.zip")[0]] == [0, 1]


def test_a_bomb_in_a_zip_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "LARGEST", 1000)
    (tmp_path / "class.zip").write_bytes(zipped(**{"log.jsonl": "0" * 2000}))
    assert merge.merged(tmp_path) == ([], [("class.zip/log.jsonl", "it has 2,000 bytes, far more than a log")])


@pytest.mark.parametrize(("folder", "says"), [("", "there is no log that counts"), ("nowhere", "is not there")])
def test_a_folder_without_logs(folder, says, tmp_path, capsys):
    assert cli.main(["class", str(tmp_path / folder), "--out", str(tmp_path / "class.png")]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / "class.png").exists()


def asked(value):
    """What check says of a prediction that is returned."""
    check("6.6", lambda: value)


def test_the_prediction_comes_before_the_run(capsys):
    assert take_part(None) is None and take_part(("Ada", 980)) is None
    assert not class_run("Ada").parent.exists()
    asked(("Ada", 88))
    assert "⏳ 6.6 not attempted yet (your prediction is well formed; now run" in capsys.readouterr().out
    run = take_part(("Ada", 88))
    printed = capsys.readouterr().out
    assert run == class_run("Ada") and f"hand in {run / 'log.jsonl'}" in printed and "predicted: 88 %" in printed
    entries, left_out = merge.merged(run.parent)
    assert [(entry.arm, entry.seed) for entry in entries] == [draw("Ada")] and not left_out
    take_part(("Ada", 12))
    assert noted(run)["accuracy"] == 88
    assert "12 % came later" in capsys.readouterr().out and "came later" not in printed
    asked(("Ada", 12))
    accuracy = entries[0].accuracy
    assert f"predicted 88 % ({noted(run)['written']}), the run has {accuracy:.2f} %, " in (
        said := capsys.readouterr().out
    )
    assert said.startswith("✅ 6.6") and f"{abs(accuracy - 88):.2f} points from it" in said
    log = run / "log.jsonl"
    whole = log.read_text()
    for text, says in [
        (
            "\n".join(whole.splitlines()[:-1]),
            "it has 1 of 2 epochs: it is not finished: run the cell that trains again",
        ),
        (whole.replace(str(accuracy), str(accuracy - 100 * 40 / 360)), "one of the two files does not belong"),
        (
            whole.replace('"lr": 0.005', '"lr": 0.004'),
            "epoch 2 has the learning rate 0.0025, where its recipe gives 0.002",
        ),
    ]:
        assert text != whole
        log.write_text(text)
        asked(("Ada", 12))
        assert (said := capsys.readouterr().out).startswith("❌ 6.6") and says in said


def test_a_run_before_its_prediction_is_refused(capsys):
    folder = class_run("Ada")
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("{}")
    assert take_part(("Ada", 88)) is None and noted(folder) is None
    assert "was begun before a prediction was written down" in capsys.readouterr().out


def test_the_exercise_says_what_its_check_asks_for():
    cells = nbformat.read(solving.ROOT / "solutions" / "06_train_cifar10.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells)
    assert "BITS, EPOCHS, HELD_OUT = {}, {}, {}".format(*BUDGET.values()) in text
    for words in ("{bits} bits", "{epochs} at most", "val={val}"):
        assert f"| {words.format(**BUDGET)}" in text or f"`{words.format(**BUDGET)}`" in text
    assert f"at least {TARGET:g} % of the held-out images" in text
    assert f"trains {RECIPES['digits'].epochs // 2} epochs on the digits" in text
    rubric = next(cell for cell in cells if cell.id == "task-6-7" and cell.cell_type == "markdown")
    assert rubric.metadata.nbgrader.points == 4 and rubric.metadata.nbgrader.grade
