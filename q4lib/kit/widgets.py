"""Sliders over one picture, and quiz questions; with Q4_WIDGETS=0 a still picture and text, for saved notebooks.

Only what ipywidgets 7.7 and 8 share, and one HTML whose value is replaced: outputs would flicker, and stack in Colab.
"""

import atexit
import base64
import gc
import html
import inspect
import io
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache, lru_cache
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from ..data import nearest

RIGHT = "✓ "


class Picture(NamedTuple):
    """A figure as PNG in base64, its size in pixels, its key numbers, words for who cannot see it, what drew it."""

    png: str
    width: int
    height: int
    numbers: str
    alt: str
    drawn: str

    @classmethod
    def of(cls, function: Callable, arguments: dict[str, Any]) -> "Picture":
        """The picture that `function` draws: it returns a figure and its key numbers."""
        from PIL import Image

        start = time.perf_counter()
        figure, numbers = function(**arguments)
        # savefig would go through the whole figure once more, for its layout: a quarter of the time.
        renderer, content = _renderer(*figure.canvas.get_width_height(), figure.dpi), io.BytesIO()
        renderer.clear()
        figure.draw(renderer)
        image = Image.fromarray(np.asarray(renderer.buffer_rgba())).convert("RGB")
        # A slider must not wait; what is stored should be small.
        image.save(content, "png", compress_level=9 if headless() else 1)
        what = (inspect.getdoc(function) or function.__name__).splitlines()[0]
        alt = " ".join([what, *numbers.split("\n")])
        png = base64.b64encode(content.getvalue()).decode()
        drawn = f"{function.__name__}, {1000 * (time.perf_counter() - start):.1f} ms"
        return cls(png, *image.size, numbers, alt, drawn)

    def page(self) -> str:
        """As HTML. With its size known before it is decoded, the page does not jump."""
        return (
            f'<figure style="margin:0" data-drawn="{self.drawn}"><img alt="{html.escape(self.alt)}" '
            f'width="{self.width}" height="{self.height}" decoding="sync" style="max-width:100%;height:auto" '
            f'src="data:image/png;base64,{self.png}">'
            f'<pre style="white-space:pre-wrap">{html.escape(self.numbers)}</pre></figure>'
        )

    def show(self) -> None:
        """As a cell's output that is still seen on a page without a kernel."""
        from IPython.display import display

        display({"image/png": self.png}, metadata={"image/png": {"alt": self.alt}}, raw=True)
        print(self.numbers)


@lru_cache(maxsize=8)
def _renderer(width: int, height: int, dpi: float) -> Any:
    """Kept, because it knows the size of each text that it has drawn."""
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(width, height, dpi)


@cache
def _settle() -> None:
    """Take all that is loaded out of garbage collection, once: to go through torch takes longer than a picture."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries complain of leaks at the end


def headless() -> bool:
    """Whether Q4_WIDGETS=0 asks for still pictures."""
    return os.environ.get("Q4_WIDGETS") == "0"


def explore(function: Callable, /, **arguments: Any) -> None:
    """Put sliders over the picture that `function` draws: for each (low, high[, step]), list of choices, and bool.

    Choices are words, numbers or bools. Everything else, and `guess`, is passed on unchanged. ValueError if the
    function would not take these arguments.
    """
    _refuse(function, arguments)
    controls = {name: made for name, value in arguments.items() if (made := _control(function, name, value))}

    def draw() -> Picture:
        return Picture.of(function, arguments | {name: control.value for name, control in controls.items()})

    if headless():
        draw().show()
        for control in controls.values():
            for _ in _at_both_ends(control):
                draw()
        return

    import ipywidgets
    from IPython.display import display

    page = ipywidgets.HTML()

    def redraw(_: object = None) -> None:
        try:
            page.value = draw().page()
        except Exception as error:
            page.value = (
                '<div role="alert" style="border:2px solid #b00020;color:#b00020;padding:.5em;line-height:1.4">'
                f"{html.escape(f'{function.__name__} failed. {type(error).__name__}: {error}')}</div>"
            )

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    _settle()
    display(ipywidgets.VBox([*controls.values(), page]))


def quiz(question: str, options: dict[str, str]) -> None:
    """Ask, and explain the option that is chosen; the right one's text begins with "✓ ". ValueError if there is none.

    With Q4_WIDGETS=0 every option's explanation is folded away below it.
    """
    right = [text for text in options if text.startswith(RIGHT)]
    if len(right) != 1 or len(options) < 2:
        raise ValueError(f"quiz({question!r}): two options or more, one of which begins with {RIGHT!r}")
    plain = {text.removeprefix(RIGHT): ("✅ " if text in right else "❌ ") + why for text, why in options.items()}
    from IPython.display import display

    if headless():
        # Markdown is not read within a summary, and is below the empty line.
        folded = [f"<details><summary>{_code(text)}</summary>\n\n{why}\n\n</details>" for text, why in plain.items()]
        display({"text/markdown": "\n\n".join([f"**{question}**", *folded])}, raw=True)
        return

    import ipywidgets

    asked, answer = ipywidgets.HTML(f"<b>{_code(question)}</b>"), ipywidgets.HTML()
    # Radio buttons show text, not HTML.
    shown = {text.replace("`", ""): why for text, why in plain.items()}
    choice = ipywidgets.RadioButtons(options=list(shown), value=None, layout={"width": "auto"})

    def explain(change: dict[str, Any]) -> None:
        answer.value = f'<div role="status">{_code(shown[change["new"]])}</div>'

    choice.observe(explain, "value")
    display(ipywidgets.VBox([asked, choice, answer]))


def _code(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _refuse(function: Callable, arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in arguments.keys() - parameters.keys():
        raise ValueError(f"{function.__name__} has no argument {name!r}{nearest(name, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"{function.__name__} needs a value or a range for {name!r}")
    guess = arguments.get("guess")
    if guess is not None and parameters["guess"].annotation in (float | None, int | None) and not _is_number(guess):
        raise ValueError(f"guess must be a number, or None for no guess, got {guess!r}")


def _control(function: Callable, name: str, value: Any) -> Any:
    """The slider or box for one argument, None where the value is to be passed on."""
    import ipywidgets

    shared: dict[str, Any] = {
        "description": name.replace("_", " "),
        "style": {"description_width": "8em"},
        "layout": {"width": "auto", "max_width": "32em"},
    }
    default: Any = getattr(inspect.signature(function).parameters.get(name), "default", None)
    if name == "guess":
        return None
    if isinstance(value, bool):
        return ipywidgets.Checkbox(value, indent=False, **shared)
    if isinstance(value, list) and all(isinstance(choice, str | Real) for choice in value):
        if not value:
            raise ValueError(f"{name} must be a list of one choice or more, got []")
        index = value.index(default) if default in value else 0
        return ipywidgets.SelectionSlider(options=value, index=index, continuous_update=True, **shared)
    if not (isinstance(value, tuple) and len(value) in (2, 3) and all(map(_is_number, value))):
        return None
    low, high, *rest = value
    if not low < high < math.inf or not all(step > 0 for step in rest):
        raise ValueError(f"{name} must be (low, high) or (low, high, step) with low < high and step > 0, got {value}")
    kind: Any = ipywidgets.IntSlider
    step: float
    if all(isinstance(number, Integral) for number in value):
        step = rest[0] if rest else 1
        start: float = (low + high) // 2
    else:
        kind, low, high = ipywidgets.FloatSlider, float(low), float(high)
        step = float(rest[0]) if rest else 10.0 ** math.floor(math.log10((high - low) / 20))
        start = low + round((high - low) / 2 / step) * step
        shared["readout_format"] = f".{max(_digits(step), min(_digits(low), _digits(step) + 1))}f"
    if _is_number(default):
        start = default  # the slider itself moves it into its range
    return kind(start, min=low, max=high, step=step, continuous_update=True, **shared)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _digits(number: float) -> int:
    """How many digits follow the point."""
    return max(0, -int(Decimal(str(number)).normalize().as_tuple().exponent))


def _at_both_ends(control: Any) -> Iterator[None]:
    """Move a control to one end, then to the other, then back."""
    start = control.value
    if hasattr(control, "options"):
        name, ends = "index", (0, len(control.options) - 1)
    else:
        name, ends = "value", (control.min, control.max) if hasattr(control, "min") else (False, True)
    for end in ends:
        setattr(control, name, end)
        yield
    control.value = start
