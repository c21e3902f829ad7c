"""The twenty pictures that lessons show, and a reader's own; `python -m q4lib.kit.pictures` writes the twenty."""

import html
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data import DataError, load, read_picture
from . import asset
from .widgets import Picture, headless

NAME, EACH = "pictures.npz", 2


class Pictures(NamedTuple):
    """CIFAR-10 test images uint8 (20, 3, 32, 32), labels and places in the test set int64 (20,), the classes' names."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    classes: tuple[str, ...]


@cache
def pictures() -> Pictures:
    """The recorded twenty: the first two of each class, class by class, so that nobody has chosen them."""
    with np.load(asset(NAME)) as file:
        images, labels, indices = (torch.from_numpy(file[name]) for name in ("images", "labels", "indices"))
        return Pictures(images, labels, indices, tuple(map(str, file["classes"])))


def first_of_each_class() -> Pictures:
    """The same from the data set itself, in the course's own order of the test images."""
    data = load("cifar10")
    found = [(data.y_test == label).nonzero().flatten()[:EACH] for label in range(len(data.classes))]
    indices = torch.cat(found)
    return Pictures(data.x_test[indices], data.y_test[indices], indices, data.classes)


def uploaded(value: Any) -> tuple[str, bytes] | None:
    """Name and content of the last file that a FileUpload holds, in ipywidgets 7 (a dict) or 8 (a tuple); or None."""
    if not value:
        return None
    if isinstance(value, dict):
        name, file = list(value.items())[-1]
        return name, bytes(file["content"])
    return value[-1]["name"], bytes(value[-1]["content"])


def upload(function: Callable, **arguments: Any) -> None:
    """A button for a picture of the reader's, drawn by `function(image=..., **arguments)`; a sentence if Q4_WIDGETS=0.

    `image` is uint8 (1, 3, 32, 32).
    """
    if headless():
        print("In a running notebook a button stands here, for a picture of yours.")
        return

    import ipywidgets
    from IPython.display import display

    button = ipywidgets.FileUpload(accept="image/*", multiple=False, description="your picture")
    page = ipywidgets.HTML()

    def redraw(_: object) -> None:
        if (file := uploaded(button.value)) is None:
            return
        name, content = file
        try:
            with TemporaryDirectory() as folder:
                path = Path(folder, "picture")
                path.write_bytes(content)
                page.value = Picture.of(function, {"image": read_picture(path), **arguments}).page()
        except DataError:
            page.value = f'<p role="alert">{html.escape(name)} cannot be read as a picture: try a PNG or a JPEG.</p>'
        except Exception as error:
            page.value = f'<p role="alert">{html.escape(f"{name}: {type(error).__name__}: {error}")}</p>'

    button.observe(redraw, "value")
    display(ipywidgets.VBox([button, page]))


def main() -> None:
    """Write the twenty to `notebooks/results`."""
    images, labels, indices, classes = first_of_each_class()
    arrays: Any = {"images": images.numpy(), "labels": labels.numpy(), "indices": indices.numpy(), "classes": classes}
    np.savez(Path(__file__).parents[2] / "notebooks" / "results" / NAME, **arrays)


if __name__ == "__main__":
    main()
