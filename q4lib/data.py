"""CIFAR-10, CIFAR-100 and scanned digits as uint8 tensors, and batches of them, augmented as whole tensors."""

import difflib
import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .download import fetch
from .files import locked
from .sources import SOURCES as SOURCES
from .sources import Source


class DataError(RuntimeError):
    """A data set that is missing or damaged, in a sentence that names the file and says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, 3, 32, 32), labels int64 (N,), both sorted by the SHA-1 of the pixels, whatever the source.

    `digest` is a SHA-256 over all four: one digest means the same images in the same order.
    """

    name: str
    x_train: Tensor = field(repr=False)
    y_train: Tensor = field(repr=False)
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)
    classes: tuple[str, ...]
    digest: str


def home() -> Path:
    """The user's folder for cache and runs: `$Q4_HOME`, else `~/.q4`."""
    return Path(os.environ.get("Q4_HOME") or Path.home() / ".q4").expanduser()


def folders() -> list[Path]:
    """Where files that were downloaded are looked for, in this order."""
    return [Path(root) for root in (os.environ.get("Q4_DATA"), "data", home() / "cache") if root]


def where(name: str) -> Path | None:
    """The file or folder that `load` would read, None if it would download. `digits` lies inside scikit-learn."""
    source = _source(name)
    name = source.whole or name
    if not source.archive:
        import sklearn.datasets

        return Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"
    candidates = [root / f"{name}.npz" for root in folders()] + [root / source.folder for root in folders()]
    return next((path for path in candidates if path.exists()), None)


def load(name: str) -> Dataset:
    """A data set of `SOURCES`, downloaded once if it is nowhere here. DataError if damaged."""
    source = _source(name)
    if source.whole:
        return _part(load(source.whole), name, source.labels)
    path = where(name) or _download(name)
    try:
        if name == "digits":
            parts = _read_digits()
        elif path.suffix == ".npz":
            parts = _read_pack(path)
        else:
            parts = _read_torchvision(name, path)
        train, test, classes = parts
        arrays = *_in_order(*train), *_in_order(*test)
    except ImportError:
        raise
    except Exception as error:
        raise DataError(f"{path} is damaged ({error}): delete it, then `q4 data get {name}`") from error
    found = _dataset(name, arrays, classes)
    if source.digest not in (None, found.digest):
        raise DataError(f"{path} does not hold the images of {name}: delete it, then `q4 data get {name}`")
    return found


def _dataset(name: str, arrays: Iterable[np.ndarray], classes: tuple[str, ...]) -> Dataset:
    arrays, digest = list(arrays), hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    x_train, y_train, x_test, y_test = map(torch.from_numpy, arrays)
    return Dataset(name, x_train, y_train, x_test, y_test, classes, digest.hexdigest())


def _part(whole: Dataset, name: str, labels: range) -> Dataset:
    arrays: list[np.ndarray] = []
    for x, y in ((whole.x_train, whole.y_train), (whole.x_test, whole.y_test)):
        kept = (y >= labels.start) & (y < labels.stop)
        arrays += x[kept].numpy(), (y[kept] - labels.start).numpy()
    return _dataset(name, arrays, whole.classes[labels.start : labels.stop])


def normalize(images: Tensor, name: str) -> Tensor:
    """uint8 (N, 3, H, W) to fp32 of about mean 0 and deviation 1, by the data set's own mean and deviation."""
    source = _source(name)
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) * 255 for v in (source.mean, source.std))
    return images.float().sub_(mean).div_(std)


def read_picture(path: Path) -> Tensor:
    """Any picture as uint8 (1, 3, 32, 32): its middle square, RGB, transparency on white. DataError if it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            picture = picture.convert("RGBA")
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from None
    white = Image.new("RGBA", picture.size, "white")
    picture = ImageOps.fit(Image.alpha_composite(white, picture).convert("RGB"), (32, 32), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def batches(
    x: Tensor,
    y: Tensor,
    size: int,
    *,
    seed: int,
    epoch: int,
    crop: int = 0,
    reflect: bool = False,
    flip: bool = False,
    alternate: bool = False,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches uint8 (size, 3, H, W) and labels, beginning with number `start`, on the device of `x`.

    Each image is shifted by up to `crop` pixels, black or its own mirror image coming in, and with `flip` mirrored half
    the time: by a coin, or with `alternate` in every other epoch. Everything is drawn from (seed, epoch), so that an
    epoch can be entered in its middle. A last batch of one image is left out, because batch norm needs two.
    """
    n, side = len(x), x.shape[-1]
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(n, generator=generator)
    shifts = torch.randint(0, 2 * crop + 1, (2, n, 1), generator=generator).to(x.device) - crop
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    if alternate:
        coins = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        mirrored = coins[order] ^ (epoch % 2 == 0)
    order, mirrored = order.to(x.device), mirrored.to(x.device) & flip
    ahead = torch.arange(side, device=x.device)
    for i in range(start * size, n, size):
        picked, now = order[i : i + size], slice(i, i + size)
        if len(picked) == 1:
            return
        rows = shifts[0, now] + ahead
        columns = shifts[1, now] + torch.where(mirrored[now], ahead.flip(0), ahead)
        if reflect:
            images = x[picked]
            rows, columns = (side - 1 - (side - 1 - at.abs()).abs() for at in (rows, columns))
        else:
            images = F.pad(x[picked], (crop,) * 4)
            rows, columns = rows + crop, columns + crop
        pixels = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).view(len(picked), 1, -1)
        images = images.flatten(2).gather(2, pixels.expand(-1, images.shape[1], -1))
        yield images.view(len(picked), -1, side, side), y[picked]


def nearest(word: object, known: Iterable[str]) -> str:
    """` (did you mean 'cifar10'?)` for an error's sentence, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(word), known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise DataError(f"no data set is called {name!r}{nearest(name, SOURCES)}: there are {', '.join(SOURCES)}")
    return SOURCES[name]


def _in_order(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keys = [hashlib.sha1(image.data).digest() + bytes([label]) for image, label in zip(x, y, strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    return np.ascontiguousarray(x[order]), y[order].astype(np.int64)


Part = tuple[np.ndarray, np.ndarray]


def _read_digits() -> tuple[Part, Part, tuple[str, ...]]:
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = (scans.images * 255 // 16).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
    x, y = _in_order(np.ascontiguousarray(x), scans.target)
    held_out = SOURCES["digits"].test
    return (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out]), tuple("0123456789")


def _read_pack(path: Path) -> tuple[Part, Part, tuple[str, ...]]:
    with np.load(path) as pack:
        part = {key: pack[key] for key in ("x_train", "y_train", "x_test", "y_test")}
        classes = tuple(str(name) for name in pack["classes"])
    return (part["x_train"], part["y_train"]), (part["x_test"], part["y_test"]), classes


def _read_torchvision(name: str, folder: Path) -> tuple[Part, Part, tuple[str, ...]]:
    """torchvision compares each batch file's md5 before it unpickles any."""
    import torchvision

    parts = [getattr(torchvision.datasets, name.upper())(folder.parent, train=train) for train in (True, False)]
    train, test = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.uint8)) for part in parts
    )
    return train, test, tuple(parts[0].classes)


def _download(name: str) -> Path:
    """Fetch the archive, compare its digest, unpack it beside the cache and move the whole folder into place."""
    source, cache = SOURCES[name], home() / "cache"
    folder = cache / source.folder
    with locked(folder):
        if not folder.exists():
            _unpack(fetch(source.urls, cache / source.archive, size=source.size, md5=source.md5), folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            with tarfile.open(archive) as tar:
                tar.extractall(part, filter="data")
            (Path(part) / folder.name).replace(folder)
        archive.unlink()
    except OSError as error:
        raise DataError(f"cannot unpack {archive} into {folder}: {error.strerror}; make room there") from error
