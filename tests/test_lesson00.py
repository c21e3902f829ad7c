"""Lesson 00: its figures against numbers computed without them, its pictures, its record, and the course's glossary."""

import hashlib
import json
import re
from dataclasses import asdict, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
import traitlets
from PIL import Image

from q4lib import SimpleResNet4bit, VGG4bit
from q4lib.kit import asset, checks, pictures, rounded
from q4lib.kit.checks import start as tasks
from q4lib.kit.figures import start
from q4lib.layers import quantized_layers
from q4lib.pack import load_model, save_model
from q4lib.recipes import RECIPES
from q4lib.train import read_log

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {path.stem: nbformat.read(path, 4) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
LESSON = LESSONS["00_start_here"]
AFTERWARDS = {"8": 87.2, "4": 83.4, "3": 61.7, "2": 12.0}
TRAINED = {8: 88.1, 4: 86.5, 3: 60.0, 2: 80.1, 32: 87.3}


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of results: untrained networks, and invented accuracies."""
    folder = tmp_path_factory.mktemp("results")
    (folder / rounded.NAME).write_text(json.dumps({"test_acc": AFTERWARDS}))
    torch.manual_seed(0)
    for bits, accuracy in TRAINED.items():
        run = folder / f"small-cifar10-b{bits}-s0"
        run.mkdir()
        facts = {"recipe": asdict(replace(RECIPES["small"], bits=bits))}
        lines = [{"run": facts}, {"epoch": 1, "test_acc": 99.0}, {"epoch": 2, "test_acc": accuracy}]
        (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
        save_model(run / "model.safetensors", SimpleResNet4bit(bits=bits))
    (folder / "fast-cifar10-b4-s0").mkdir()
    save_model(folder / "fast-cifar10-b4-s0" / "model.safetensors", VGG4bit())
    return folder


@pytest.fixture
def results(made, monkeypatch):
    for module in (start, rounded, tasks):
        monkeypatch.setattr(module, "asset", lambda name: made / name)
    for cached in (rounded.compared, start._answers):
        cached.cache_clear()
    yield made
    for cached in (rounded.compared, start._answers):
        cached.cache_clear()


def softmax(model, images):
    """The ten shares, by NumPy but for the network itself."""
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    x = torch.from_numpy((images.numpy() / 255 - mean) / std).float()
    with torch.no_grad():
        logits = model.eval()(x).double().numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def on_the_grid(model, bits):
    """The network, its weights rounded by NumPy, its own quantizers off."""
    for layer in quantized_layers(model).values():
        w, q = layer.weight.detach().numpy(), 2 ** (bits - 1) - 1
        step = np.abs(w).max() / q
        layer.weight.data = torch.from_numpy(np.clip(np.rint(w / step), -q, q) * step)
        layer.bits = 32
    return model


def test_the_file_is_that_many_times_smaller(results):
    """Without the header FP32 takes 4 bytes a number; a bar for each file, and one for the guess."""
    file = results / "fast-cifar10-b4-s0" / "model.safetensors"
    figure, numbers = start.plot_files(file, guess=5)
    full, packed = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) bytes", numbers))
    state = VGG4bit().state_dict()
    content = sum(t.numel() * t.element_size() for t in state.values())
    assert packed == file.stat().st_size and content < full < content + 10_000
    assert f"{full / packed:.1f} times smaller" in numbers
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([full / 1e6, packed / 1e6, full / 5e6])
    assert f"{full / packed:.1f} times smaller" in prose(LESSON)
    assert set(re.findall(r"([\d.]+) times smaller", prose(LESSON))) == {f"{full / packed:.1f}"}


@pytest.mark.parametrize("picture", [1, 8, 20])
def test_an_answer_is_the_three_largest_shares(picture):
    torch.manual_seed(1)
    model = SimpleResNet4bit().eval()
    shown = pictures.pictures()
    share = softmax(model, shown.images)[picture - 1]
    figure, numbers = start.plot_answer(model, picture)
    order, label = share.argsort()[::-1], int(shown.labels[picture - 1])
    said = [f"{shown.classes[i]} {start._percent(share[i])}" for i in order[:3]]
    place = order.tolist().index(label) + 1
    verdict = "right" if place == 1 else f"wrong: {shown.classes[label]} is number {place} of its 10"
    first, second = numbers.split("\n")
    assert first == f"picture {picture} of 20: {shown.classes[label]}"
    assert second == f"the network says {', '.join(said)}: {verdict}"
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx(100 * share[order[:3]], rel=1e-4)
    assert (figure.axes[0].images[0].get_array() == shown.images[picture - 1].permute(1, 2, 0).numpy()).all()
    marked = [text.get_text() for text in figure.axes[1].texts if "right answer" in text.get_text()]
    assert len(marked) == (place <= 3)


@pytest.mark.parametrize(
    ("share", "said"),
    [(1, "over 99 %"), (0.997, "over 99 %"), (0.994, "99 %"), (0.5, "50 %"), (0.006, "1 %"), (0.004, "under 1 %")],
)
def test_no_share_is_called_certain(share, said):
    assert start._percent(share) == said


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_afterwards_moves_weights_and_nothing_else(bits):
    torch.manual_seed(bits)
    model, images = SimpleResNet4bit(bits=32), pictures.pictures().images
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net = rounded.round_afterwards(model, bits)
    after = softmax(net, images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {layer.bits for layer in quantized_layers(model).values()} == {32}
    np.testing.assert_allclose(after, softmax(on_the_grid(model, bits), images), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("bits", "seen"), [(8, [8]), (4, [8, 4]), (3, [8, 4, 3]), (2, [8, 4, 3, 2])])
def test_bars_are_the_record_s_and_the_logs_last_epochs(results, bits, seen):
    figure, numbers = start.plot_rounded(bits, guess=50)
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [AFTERWARDS[str(b)] for b in seen] + [TRAINED[b] for b in seen]
    assert [text.get_text() for text in figure.axes[0].texts].count("?") == 4 - len(seen)
    lines = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines}
    assert lines == {"FP32: 87.3": 87.3, "chance: 10": 10, "your guess": 50}
    assert f"rounded afterwards {AFTERWARDS[str(bits)]:.1f} %, trained rounded {TRAINED[bits]:.1f} %" in numbers


def test_a_verdict_names_the_better_and_calls_less_than_a_point_nothing(results):
    said = {bits: start.verdict(bits).rpartition(": ")[2] for bits in (8, 4, 3, 2)}
    expected = ("less than 1 point apart", "3.1 points better", "1.7 points worse", "68.1 points better")
    assert tuple(said.values()) == expected


@pytest.mark.parametrize("bits", [2, 8])
def test_the_twenty_are_answered_live(results, bits):
    shown = pictures.pictures()
    full, trained = (load_model(results / f"small-cifar10-b{b}-s0" / "model.safetensors")[0] for b in (32, bits))
    answers = [softmax(net, shown.images).argmax(1) for net in (on_the_grid(full, bits), trained)]
    right = [int((answer == shown.labels.numpy()).sum()) for answer in answers]
    figure, numbers = start.plot_twenty(bits)
    assert numbers.split("\n") == [
        f"{bits} bits, right of 20: {right[0]} rounded afterwards · {right[1]} trained rounded",
        f"the two answer differently on {(answers[0] != answers[1]).sum()}",
    ]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert len(texts) == 10 + 40 and texts.count("✓") == sum(right)


def test_the_twenty_are_real_and_the_first_two_of_each_class(cifar10_pack):
    """By the pack itself: of each class the two test images whose pixels have the smallest SHA-1."""
    shown = pictures.pictures()
    with np.load(cifar10_pack) as pack:
        x, y = pack["x_test"], pack["y_test"].astype(int)
        names = tuple(map(str, pack["classes"]))
    order = sorted(range(len(y)), key=lambda i: hashlib.sha1(x[i].tobytes()).digest())
    expected = [place for label in range(10) for place in [p for p in range(len(y)) if y[order[p]] == label][:2]]
    assert shown.indices.tolist() == expected and shown.classes == names
    assert shown.labels.tolist() == [y[order[p]] for p in expected] == sorted([*range(10)] * 2)
    assert (shown.images.numpy() == x[[order[p] for p in expected]]).all()
    again = pictures.first_of_each_class()
    assert torch.equal(again.images, shown.images) and torch.equal(again.indices, shown.indices)


def test_the_record_belongs_to_the_shipped_network():
    """Its digest is the file's, its data are the log's, and at 32 bits it found what the log says."""
    record, file = json.loads(asset(rounded.NAME).read_text()), asset("small-cifar10-b32-s0/model.safetensors")
    facts, epochs = read_log(file.parent)
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["data_digest"] == facts["data_digest"] and record["precision"] == "fp32"
    assert record["test_acc"]["32"] == pytest.approx(epochs[-1]["test_acc"], abs=0.05)
    assert not record["git_commit"].endswith("-dirty")


def test_the_record_is_measured_again(cifar10_pack):
    record = json.loads(asset(rounded.NAME).read_text())
    found = rounded.measure(asset(record["file"]))
    assert found["test_acc"] == pytest.approx(record["test_acc"], abs=0.05)


def test_the_explanation_says_what_was_recorded():
    """Its words, one by one: within a point; ten points, nearly all back; two of three, one of five; guessing."""
    pairs, text = rounded.compared(), " ".join(prose(LESSON).split())
    full = pairs[32].trained
    assert rounded.Pair(70.17, 82.14).gain == pytest.approx(82.1 - 70.2), "as a reader of 82.1 and 70.2 reckons"
    assert "the two end within a point of the FP32 network" in text
    assert abs(pairs[8].afterwards - full) < 1 and abs(pairs[8].trained - full) < 1
    assert "costs more than ten points, and training rounded gets nearly all of them back" in text
    assert full - pairs[4].afterwards > 10 and full - pairs[4].trained < 2
    assert "wrong in two of three pictures, the other in about one of five" in text
    assert pairs[3].afterwards == pytest.approx(100 / 3, abs=5) and pairs[3].trained == pytest.approx(80, abs=3)
    assert "the one rounded afterwards is right once in ten, and calls everything in our twenty a dog" in text
    small, _ = load_model(ROOT / "notebooks/results/small-cifar10-b32-s0/model.safetensors")
    said = start.shares(rounded.round_afterwards(small, 2), pictures.pictures().images).argmax(1)
    assert set(said.tolist()) == {5}, "dog"
    assert pairs[2].afterwards == pytest.approx(10, abs=1) and 15 < pairs[2].trained < 60


def png(size=(40, 30), colour="red"):
    content = BytesIO()
    Image.new("RGB", size, colour).save(content, "png")
    return content.getvalue()


class Upload7(ipywidgets.DOMWidget):
    """A FileUpload whose value is a dict of files by name, as in ipywidgets 7."""

    accept, multiple, description = traitlets.Unicode(), traitlets.Bool(), traitlets.Unicode()
    value = traitlets.Dict()


def value7(name, content):
    return {name: {"metadata": {"name": name, "size": len(content)}, "content": content}}


def value8(name, content):
    about = {"name": name, "type": "image/png", "size": len(content)}
    return ({**about, "last_modified": datetime.now(UTC), "content": memoryview(content)},)


@pytest.mark.parametrize(("kind", "value"), [(Upload7, value7), (ipywidgets.FileUpload, value8)])
def test_a_picture_of_yours_is_answered(kind, value, monkeypatch):
    shown, seen = [], []
    monkeypatch.delenv("Q4_WIDGETS", raising=False)
    monkeypatch.setattr(ipywidgets, "FileUpload", kind)
    monkeypatch.setattr("IPython.display.display", shown.append)

    def draw(model, image):
        seen.append(image)
        return start.plot_upload(model, image)

    torch.manual_seed(0)
    pictures.upload(draw, model=SimpleResNet4bit().eval())
    button, page = shown[0].children
    assert page.value == "" and button.description == "your picture" and not button.multiple
    button.value = value("red.png", png())
    assert "<img" in page.value and "the network says" in page.value
    assert seen[0].shape == (1, 3, 32, 32) and (seen[0] == torch.tensor([255, 0, 0]).view(1, 3, 1, 1)).all()
    button.value = value("<b>.txt", b"no picture")
    assert 'role="alert"' in page.value and "&lt;b&gt;.txt cannot be read" in page.value and "<img" not in page.value
    button.value = type(button.value)()
    assert "cannot be read" in page.value and len(seen) == 1


def test_an_error_while_answering_is_seen(monkeypatch):
    shown = []
    monkeypatch.delenv("Q4_WIDGETS", raising=False)
    monkeypatch.setattr("IPython.display.display", shown.append)
    pictures.upload(lambda image: 1 / 0)
    button, page = shown[0].children
    button.value = value8("red.png", png())
    assert 'role="alert"' in page.value and "ZeroDivisionError" in page.value


def test_without_widgets_a_sentence_stands_for_the_button(monkeypatch, capsys):
    monkeypatch.setenv("Q4_WIDGETS", "0")
    pictures.upload(start.plot_upload, model=None)
    assert "picture of yours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (36_864, "how many weights there are"),
        (16, "16 things"),
        (99, "unique"),
        ("some", "a number is asked for"),
        (torch.arange(15), "the numbers themselves"),
    ],
)
def test_a_wrong_count_is_told_why(results, wrong, why):
    with pytest.raises(checks.Wrong, match=why):
        tasks.different(wrong)


def test_the_right_count_is_accepted(results):
    codes = load_model(results / "fast-cifar10-b4-s0" / "model.safetensors")[0].conv1_2.weight
    count = len(set(codes.flatten().tolist()))
    assert tasks.different(count) == f"36,864 weights share {count} of 15 possible numbers"


def test_where_the_network_is_least_sure():
    shown, model = pictures.pictures(), load_model(asset("fast-cifar10-b4-s0/model.safetensors"))[0]
    share, answers = start.shares(model, shown.images).max(1)
    said = [(shown.classes[shown.labels[i]], shown.classes[answers[i]]) for i in share.argsort()[:3]]
    assert said == [("airplane", "ship"), ("deer", "deer"), ("cat", "cat")]
    assert "least sure of the first airplane, and wrong: it calls it a ship" in prose(LESSON)
    assert "Next come a deer and a cat, and both are right" in prose(LESSON)


def terms():
    """The glossary's entries: the words of each, in its order."""
    text = prose(LESSON).partition("## Glossary")[2].partition("\n## ")[0]
    return [re.findall(r"\*\*(.+?)\*\*", line.partition(":")[0]) for line in re.findall(r"^- (.*)$", text, re.M)]


def test_the_glossary_is_in_order():
    first = [words[0].lower() for words in terms()]
    assert len(first) > 40 and first == sorted(set(first))


def test_every_linked_word_is_in_the_glossary():
    assert '<a id="glossary"></a>\n\n## Glossary' in prose(LESSON)
    known = {word.lower() for words in terms() for word in words}
    for stem, notebook in LESSONS.items():
        for word, target in re.findall(r"\[([^]]+)\]\((?:00_start_here\.ipynb)?(#[^)]*)\)", prose(notebook)):
            word = word.strip("`*").lower()
            assert target == "#glossary" and {word, word.removesuffix("s")} & known, f"{stem}: {word}"


def test_the_table_of_lessons_says_what_the_lessons_say():
    """Each lesson is linked, with the minutes that its own first cell gives."""
    rows = re.findall(r"^\| (?:\[)?(\d\d) [^|]*\|[^|]*\| (\d+|to come) \|$", prose(LESSON), re.M)
    minutes = dict(rows)
    assert list(minutes) == [f"{n:02}" for n in range(9)]
    for stem, notebook in LESSONS.items():
        own = re.search(r"(?:Minutes|Time)\W+(?:about )?(\d+)", notebook.cells[0].source)
        assert minutes[stem[:2]] == own[1], stem
        assert stem.startswith("00") or f"]({stem}.ipynb) |" in prose(LESSON)


def test_what_the_text_says_of_the_networks():
    count = {cls: sum(p.numel() for p in cls().parameters()) for cls in (VGG4bit, SimpleResNet4bit)}
    assert round(count[SimpleResNet4bit] / 1000) == 73 and "73 thousand parameters" in prose(LESSON)
    assert VGG4bit().conv1_2.weight.numel() == 36_864 and "= 36,864 numbers" in prose(LESSON)
    facts, _ = read_log(asset("small-cifar10-b4-s0"))
    assert facts["recipe"]["epochs"] == 10 and "ten epochs by our own recipe `small`" in prose(LESSON)


def test_the_self_test_has_five_questions_and_a_link_for_each():
    sources = [cell.source for cell in LESSON.cells]
    end = next(i for i, source in enumerate(sources) if source.startswith("## Why"))
    assert sum(source.startswith("quiz(") for source in sources[:end]) == 5
    assert len(re.findall(r"\]\(https://[^)]+\.html\)", sources[end - 1])) == 5


def test_no_lesson_has_a_gap():
    for stem, notebook in LESSONS.items():
        assert "[[" not in prose(notebook), stem
