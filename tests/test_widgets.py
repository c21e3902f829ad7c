"""explore and quiz without a browser: what is shown, what is called, and what is refused."""

import base64
import gc
import io
import math
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import ipywidgets
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from q4lib.kit import explore, quiz, widgets
from q4lib.kit.widgets import Picture


@pytest.fixture
def shown(monkeypatch):
    """Everything that is displayed: (args, kwargs) of each call."""
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.fixture
def page(shown, monkeypatch):
    """Calls explore or quiz with live widgets; gives the widgets by their label, and the HTML below them."""
    monkeypatch.delenv("Q4_WIDGETS", raising=False)

    def show(function, *args, **arguments):
        function(*args, **arguments)
        *controls, html = shown.pop()[0][0].children
        assert isinstance(html, ipywidgets.HTML) and not shown
        return SimpleNamespace(html=html, controls=controls, **{c.description.replace(" ", "_"): c for c in controls})

    return show


@pytest.fixture
def still(monkeypatch):
    monkeypatch.setenv("Q4_WIDGETS", "0")


calls = []


def plot(bits=4, amax=0.5, kind="soft", fair=True, weights=None, guess=None, small_step=0.5):
    """A line <up>.

    Not for the alt text.
    """
    calls.append(SimpleNamespace(**locals()))
    if bits == 7:
        raise RuntimeError("seven <bits> & more")
    figure = Figure(figsize=(4, 2), dpi=50)
    figure.subplots().plot([0, bits])
    return figure, f"bits {bits} · amax {amax:.2f}\nkind <{kind}>"


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def test_arguments_become_the_controls_they_should(page):
    weights, guess = object(), (1, 5)
    got = page(
        explore, plot, bits=(2, 8), amax=(0.05, 0.9), kind=["hard", "soft"], fair=False, weights=weights, guess=guess,
        small_step=(0, 1.0, 0.25),
    )  # fmt: skip
    assert [type(c).__name__ for c in got.controls] == [
        "IntSlider", "FloatSlider", "SelectionSlider", "Checkbox", "FloatSlider",
    ]  # fmt: skip
    assert (got.bits.min, got.bits.max, got.bits.step, got.bits.value) == (2, 8, 1, 4)
    assert (got.amax.min, got.amax.max, got.amax.step, got.amax.value) == (0.05, 0.9, 0.01, 0.5)
    assert got.amax.readout_format == ".2f"
    assert (got.kind.options, got.kind.value, got.fair.value) == (("hard", "soft"), "soft", False)
    assert (got.small_step.step, got.small_step.readout_format) == (0.25, ".2f")
    assert all(c.continuous_update for c in got.controls if c is not got.fair)
    last = calls[-1]
    assert (last.weights, last.guess, last.fair) == (weights, guess, False)
    assert last.weights is weights


@pytest.mark.parametrize("data", [[torch.ones(2), torch.ones(3)], [[1, 2], [3]], [None], [("soft", 1)]])
def test_a_list_of_what_is_no_choice_is_passed_on(page, data):
    assert [c.description for c in page(explore, plot, bits=(2, 8), weights=data).controls] == ["bits"]
    assert calls[-1].weights is data


def no_defaults(bits, amax, kind):
    return plot(bits, amax, kind)


def test_without_a_default_a_slider_starts_in_the_middle(page):
    got = page(explore, no_defaults, bits=(2, 9), amax=(0.0, 3.0), kind=["a", "b"])
    assert (got.bits.value, got.amax.value, got.kind.value) == (5, 1.5, "a")


def test_a_default_outside_the_range_starts_at_its_end(page):
    got = page(explore, plot, bits=(5, 8), amax=(0.1, 0.2))
    assert (got.bits.value, got.amax.value) == (5, 0.2)


def test_the_page_shows_the_picture_its_alt_text_and_the_numbers(page):
    got = page(explore, plot, bits=(2, 8))
    before = got.html.value
    assert '<img alt="A line &lt;up&gt;. bits 4 · amax 0.50 kind &lt;soft&gt;" width="200" height="100"' in before
    assert ">bits 4 · amax 0.50\nkind &lt;soft&gt;</pre></figure>" in before
    picture = base64.b64decode(before.split("data:image/png;base64,")[1].split('"')[0])
    assert imread(io.BytesIO(picture)).shape[:2] == (100, 200)
    assert re.search(r' data-drawn="plot, \d+\.\d ms">', before)
    got.bits.value = 5
    assert got.html.value.count("<img") == got.html.value.count("<pre") == 1
    assert "bits 5" in got.html.value and got.html.value.split("src=")[1] != before.split("src=")[1]


def test_a_picture_shows_nothing_of_the_one_before():
    def line(end):
        figure = Figure(figsize=(2, 1), dpi=50, facecolor="none")
        figure.subplots().plot([0, end], [end, 0])
        return figure, ""

    first, second, again = (Picture.of(line, {"end": end}).png for end in (1, -1, 1))
    assert first == again != second


def test_what_is_loaded_is_left_out_of_garbage_collection(page):
    gc.unfreeze()
    widgets._settle.cache_clear()
    page(explore, plot, bits=(2, 8))
    assert gc.get_freeze_count() > 100_000
    gc.unfreeze()


def test_an_error_is_shown_and_the_next_good_value_draws_again(page):
    got = page(explore, plot, bits=(2, 8))
    got.bits.value = 7
    assert got.html.value.startswith('<div role="alert"') and "<img" not in got.html.value
    assert "plot failed. RuntimeError: seven &lt;bits&gt; &amp; more</div>" in got.html.value
    got.bits.value = 8
    assert "<img" in got.html.value and "alert" not in got.html.value


def test_an_error_at_the_start_leaves_the_sliders_usable(page):
    got = page(explore, plot, bits=(7, 8))
    assert "seven" in got.html.value
    got.bits.value = 8
    assert "bits 8" in got.html.value


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"bit": (2, 8)}, r"plot has no argument 'bit' \(did you mean 'bits'"),
        ({"bits": (8, 2)}, r"bits must be .* got \(8, 2\)"),
        ({"bits": (2, 2)}, "low < high"),
        ({"amax": (0.0, math.inf)}, "low < high"),
        ({"amax": (0.0, math.nan)}, "low < high"),
        ({"amax": (0.0, 1.0, 0)}, "step > 0"),
        ({"kind": []}, "kind"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(shown, arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        explore(plot, **arguments)
    assert "\n" not in str(caught.value)
    assert not shown and not calls


def test_a_guess_in_words_is_refused(shown):
    def plot_number(guess: float | None = None):
        raise AssertionError("drawn")

    with pytest.raises(ValueError, match="guess must be a number, or None for no guess, got 'eight'"):
        explore(plot_number, guess="eight")


def test_a_missing_argument_is_refused():
    with pytest.raises(ValueError, match="no_defaults needs a value or a range for 'amax'"):
        explore(no_defaults, bits=(2, 8), kind="a")


def test_still_shows_one_png_with_alt_text_and_prints_the_numbers(still, shown, capsys):
    explore(plot, bits=(2, 6), amax=(0.1, 0.9))
    [((data,), kwargs)] = shown
    assert list(data) == ["image/png"] and base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert kwargs == {
        "metadata": {"image/png": {"alt": "A line <up>. bits 4 · amax 0.50 kind <soft>"}}, "raw": True,
    }  # fmt: skip
    assert capsys.readouterr().out == "bits 4 · amax 0.50\nkind <soft>\n"


def test_still_calls_both_ends_of_every_control_with_the_others_at_their_start(still, shown):
    explore(plot, bits=(2, 6), amax=(0.1, 0.9), kind=["hard", "soft", "none"], fair=True)
    start = (4, 0.5, "soft", True)
    assert [(c.bits, c.amax, c.kind, c.fair) for c in calls] == [
        start,
        (2, *start[1:]), (6, *start[1:]),
        (4, 0.1, "soft", True), (4, 0.9, "soft", True),
        (4, 0.5, "hard", True), (4, 0.5, "none", True),
        (4, 0.5, "soft", False), (4, 0.5, "soft", True),
    ]  # fmt: skip


@pytest.mark.parametrize("ends", [(2, 7), (7, 8)])
def test_still_lets_an_error_at_either_end_through(still, shown, ends):
    with pytest.raises(RuntimeError, match="seven"):
        explore(plot, bits=ends)


QUIZ = {"16: `2**4`": "Zero would have two codes.", "✓ 15": "7 on each side & zero.", "8": "Those have 3 bits."}


def test_quiz_explains_the_chosen_option(page):
    got = page(quiz, "Why `<15>` levels?", QUIZ)
    [asked, choice] = got.controls
    assert asked.value == "<b>Why <code>&lt;15&gt;</code> levels?</b>"
    assert choice.options == ("16: 2**4", "15", "8") and choice.value is None and got.html.value == ""
    choice.value = "16: 2**4"
    assert got.html.value == '<div role="status">❌ Zero would have two codes.</div>'
    choice.value = "15"
    assert got.html.value == '<div role="status">✅ 7 on each side &amp; zero.</div>'


def test_still_quiz_folds_the_explanations(still, shown):
    quiz("Why 15 levels?", QUIZ)
    [((data,), _)] = shown
    assert data == {
        "text/markdown": """**Why 15 levels?**

<details><summary>16: <code>2**4</code></summary>

❌ Zero would have two codes.

</details>

<details><summary>15</summary>

✅ 7 on each side & zero.

</details>

<details><summary>8</summary>

❌ Those have 3 bits.

</details>"""
    }


@pytest.mark.parametrize("options", [{"a": "no", "b": "no"}, {"✓ a": "", "✓ b": ""}, {"✓ a": ""}])
def test_quiz_wants_one_right_answer_of_several(shown, options):
    with pytest.raises(ValueError, match="one of which begins with '✓ '"):
        quiz("Why?", options)


def test_the_kit_loads_no_widgets_and_no_pictures():
    code = "import sys, q4lib.kit; print(*{'IPython', 'ipywidgets', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_no_widget_is_made_in_a_way_that_is_deprecated(page):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page(explore, plot, bits=(2, 6), amax=(0.1, 0.9), kind=["hard", "soft"], fair=True)
        page(quiz, "Why?", QUIZ)
