"""The same images in the same order, whatever they came from; batches that can be entered in their middle."""

import functools
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from q4lib import data
from q4lib.data import DataError, batches, load, normalize, read_picture


def random_images(n: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 10


def write_pack(path: Path, order_seed: int) -> None:
    """A small CIFAR-10 pack, its images in an order of its own."""
    x, y = (part.numpy() for part in random_images())
    order = np.random.default_rng(order_seed).permutation(50)
    classes = np.array(torchvision_classes())
    np.savez(path, x_train=x[:50][order], y_train=y[:50][order].astype(np.uint8),
             x_test=x[50:], y_test=y[50:].astype(np.uint8), classes=classes)  # fmt: skip


def torchvision_classes() -> list[str]:
    return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_torchvision_folder(root: Path, monkeypatch) -> Path:
    """The same images as torchvision's batch files, whose md5 torchvision is told to expect."""
    x, y = (part.numpy() for part in random_images())
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    files = {"meta": {"label_names": torchvision_classes()}, "test": {"data": x[50:], "labels": y[50:]}}
    files |= {f"part{i}": {"data": x[10 * i : 10 * i + 10], "labels": y[10 * i : 10 * i + 10]} for i in range(5)}
    md5 = {}
    for name, content in files.items():
        content = {k: v.reshape(len(v), -1) if k == "data" else list(map(str if k == "label_names" else int, v))
                   for k, v in content.items()}  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[f"part{i}", md5[f"part{i}"]] for i in range(5)])
    monkeypatch.setattr(cifar, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(cifar, "meta", {"filename": "meta", "key": "label_names", "md5": md5["meta"]})
    return folder


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """Q4_DATA points to an empty folder, and any images pass for CIFAR-10."""
    monkeypatch.setenv("Q4_DATA", str(tmp_path))
    monkeypatch.setitem(data.SOURCES, "cifar10", replace(data.SOURCES["cifar10"], digest=None))
    return tmp_path


def test_every_source_gives_the_same_images_in_the_same_order(small_cifar, monkeypatch):
    write_pack(small_cifar / "cifar10.npz", order_seed=1)
    one = load("cifar10")
    write_pack(small_cifar / "cifar10.npz", order_seed=2)
    other = load("cifar10")
    (small_cifar / "cifar10.npz").unlink()
    folder = write_torchvision_folder(small_cifar, monkeypatch)
    assert data.where("cifar10") == folder
    third = load("cifar10")
    assert one.digest == other.digest == third.digest
    assert torch.equal(one.x_train, third.x_train) and torch.equal(one.y_test, third.y_test)
    assert one.classes == third.classes
    keys = [hashlib.sha1(image.numpy().tobytes()).hexdigest() for image in one.x_train]
    assert keys == sorted(keys)


def test_nothing_is_unpickled_before_its_digest_matched(small_cifar, monkeypatch):
    """A batch file that was exchanged for a hostile pickle is refused, not run."""
    folder = write_torchvision_folder(small_cifar, monkeypatch)
    mark = small_cifar / "executed"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (mark,))

    (folder / "part3").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=r"cifar-10-batches-py is damaged.*q4 data get cifar10"):
        load("cifar10")
    assert not mark.exists()


def test_a_download_ends_in_torchvisions_layout_in_the_cache(small_cifar, q4_home, monkeypatch, capfd):
    """From a real server: fetched, checked, unpacked, moved into place, read; the second time without the server."""
    site = small_cifar / "site"
    folder = write_torchvision_folder(site, monkeypatch)
    with tarfile.open(site / "cifar.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    archive = (site / "cifar.tar.gz").read_bytes()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/cifar.tar.gz"
        md5 = hashlib.md5(archive).hexdigest()
        source = replace(data.SOURCES["cifar10"], urls=(url,), size=len(archive), md5=md5)
        monkeypatch.setitem(data.SOURCES, "cifar10", source)
        first = load("cifar10")
        server.shutdown()
    assert data.where("cifar10") == q4_home / "cache" / "cifar-10-batches-py"
    assert load("cifar10").digest == first.digest
    assert [path.name for path in (q4_home / "cache").iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_damaged_pack_is_named(small_cifar, keep):
    write_pack(small_cifar / "cifar10.npz", order_seed=1)
    whole = (small_cifar / "cifar10.npz").read_bytes()
    (small_cifar / "cifar10.npz").write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"cifar10\.npz is damaged .*q4 data get cifar10"):
        load("cifar10")


def test_a_pack_of_other_images_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("Q4_DATA", str(tmp_path))
    write_pack(tmp_path / "cifar10.npz", order_seed=1)
    with pytest.raises(DataError, match="does not hold the images of cifar10"):
        load("cifar10")


def test_an_unknown_data_set_is_an_error():
    with pytest.raises(DataError, match="'mnist': there are digits, cifar10, cifar100"):
        load("mnist")


def test_digits_are_the_scans_enlarged_and_held_out_apart():
    from sklearn.datasets import load_digits

    digits = load("digits")
    assert digits.x_train.shape == (1437, 3, 32, 32) and digits.x_test.shape == (360, 3, 32, 32)
    assert digits.x_train.dtype == torch.uint8 and digits.x_train.max() == 255
    small = torch.cat([digits.x_train, digits.x_test])[:, 1, ::4, ::4]
    scans = torch.from_numpy(load_digits().images * 255 // 16).byte()
    assert sorted(map(bytes, small.flatten(1).numpy())) == sorted(map(bytes, scans.flatten(1).numpy()))
    assert set(digits.y_test.tolist()) == set(range(10))


def test_the_real_cifar10_is_whole(cifar10_pack):
    images = load("cifar10")
    assert images.x_train.shape == (50_000, 3, 32, 32) and images.x_test.shape == (10_000, 3, 32, 32)
    assert images.y_train.bincount().tolist() == [5000] * 10 and images.y_test.bincount().tolist() == [1000] * 10
    assert images.digest == data.SOURCES["cifar10"].digest
    mean = images.x_train.double().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor(data.SOURCES["cifar10"].mean).double(), atol=1e-4, rtol=0)


def test_an_augmented_image_is_a_shifted_mirrored_original():
    """Each image equals one of the 162 that padding, cutting and mirroring by hand can give, and all kinds occur."""
    x, y = random_images(200)
    x[:, :, 0, 0] = torch.arange(200)[:, None]
    kinds = set()
    for images, labels in batches(x, torch.arange(200), 64, seed=3, epoch=1, crop=4, flip=True):
        for image, label in zip(images, labels, strict=True):
            padded = torch.nn.functional.pad(x[label], (4, 4, 4, 4))
            found = [
                (dy, dx, mirrored)
                for dy in range(9)
                for dx in range(9)
                for mirrored in (False, True)
                for cut in [padded[:, dy : dy + 32, dx : dx + 32]]
                if torch.equal(cut.flip(2) if mirrored else cut, image)
            ]
            assert len(found) == 1
            kinds |= {("dy", found[0][0]), ("dx", found[0][1]), ("mirrored", found[0][2])}
    assert len(kinds) == 9 + 9 + 2


def test_a_reflected_crop_is_that_of_a_reflected_border():
    """Every batch image is a window of the image that F.pad reflects."""
    x, y = random_images(8)
    drawn, _ = next(batches(x, torch.arange(8), 8, seed=3, epoch=1, crop=3, reflect=True))
    _, numbers = next(batches(x, torch.arange(8), 8, seed=3, epoch=1, crop=3, reflect=True))
    bordered = F.pad(x.float(), (3,) * 4, mode="reflect")
    shifts = set()
    for image, number in zip(drawn, numbers, strict=True):
        windows = bordered[number].unfold(1, 32, 1).unfold(2, 32, 1)
        same = (windows == image[:, None, None].float()).flatten(3).all(3).all(0)
        assert same.any()
        shifts |= {tuple(at) for at in same.nonzero().tolist()}
    assert len(shifts) > 3


def test_an_alternating_flip_shows_each_image_both_ways_in_two_epochs():
    x, _ = random_images(40)
    ways = []
    for epoch in (1, 2, 3):
        images, numbers = next(batches(x, torch.arange(40), 40, seed=0, epoch=epoch, flip=True, alternate=True))
        mirrored = (images == x[numbers].flip(3)).flatten(1).all(1)
        assert (mirrored | (images == x[numbers]).flatten(1).all(1)).all()
        ways.append(mirrored[numbers.argsort()])
    assert (ways[0] ^ ways[1]).all() and (ways[0] == ways[2]).all() and 8 < ways[0].sum() < 32


def test_batches_are_drawn_from_seed_and_epoch_alone():
    """Equal for equal seed and epoch, entered in the middle too; every image once; another order in another epoch."""
    x, y = random_images(105)

    def draw(**changes):
        return list(batches(x, torch.arange(105), 16, **{"seed": 1, "epoch": 1, "crop": 4, "flip": True, **changes}))

    whole = draw()
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == list(range(105))
    for (images, labels), (again, labels_again) in zip(whole[3:], draw(start=3), strict=True):
        assert torch.equal(images, again) and torch.equal(labels, labels_again)
    for other in (draw(epoch=2), draw(seed=2)):
        assert not torch.equal(other[0][1], whole[0][1])
    plain = draw(crop=0, flip=False)
    assert all(torch.equal(images, x[labels]) for images, labels in plain)


def test_a_last_batch_of_one_image_is_left_out():
    x, y = random_images(33)
    assert [len(labels) for _, labels in batches(x, y, 16, seed=0, epoch=1)] == [16, 16]
    assert [len(labels) for _, labels in batches(x[:18], y, 16, seed=0, epoch=1)] == [16, 2]


def test_normalize_is_torchvisions():
    x, _ = random_images(4)
    source = data.SOURCES["cifar10"]
    theirs = torchvision.transforms.functional.normalize(x / 255, source.mean, source.std)
    torch.testing.assert_close(normalize(x, "cifar10"), theirs, atol=1e-5, rtol=1e-5)


def picture(tmp_path: Path, mode: str, size: tuple[int, int], colour, name: str = "p.png") -> torch.Tensor:
    Image.new(mode, size, colour).save(tmp_path / name)
    return read_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("mode", "size", "colour", "expected"),
    [
        ("RGB", (32, 32), (10, 20, 30), (10, 20, 30)),
        ("RGB", (500, 40), (10, 20, 30), (10, 20, 30)),
        ("RGB", (1, 1), (10, 20, 30), (10, 20, 30)),
        ("L", (33, 64), 77, (77, 77, 77)),
        ("1", (64, 64), 1, (255, 255, 255)),
        ("LA", (64, 64), (0, 0), (255, 255, 255)),
        ("RGBA", (64, 64), (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (64, 64), (10, 20, 30, 255), (10, 20, 30)),
        ("I;16", (64, 64), 256 * 100, (100, 100, 100)),
    ],
)
def test_any_picture_becomes_32_by_32(tmp_path, mode, size, colour, expected):
    image = picture(tmp_path, mode, size, colour)
    assert image.shape == (1, 3, 32, 32) and image.dtype == torch.uint8
    assert image[0].flatten(1).unique(dim=1).tolist() == [[c] for c in expected]


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path):
    upright = Image.new("RGB", (32, 32))
    upright.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3
    upright.rotate(180).save(tmp_path / "p.png", exif=exif)
    assert read_picture(tmp_path / "p.png")[0, 0, :, 0].tolist() == [255] * 16 + [0] * 16


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_what_is_no_picture_is_named(tmp_path, content):
    if content is None:
        file = io.BytesIO()
        Image.effect_noise((64, 64), 50).save(file, "PNG")
        content = file.getvalue()[:500]
    (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(DataError, match=r"p\.png cannot be read as a picture"):
        read_picture(tmp_path / "p.png")
    with pytest.raises(DataError, match=r"q\.png cannot be read"):
        read_picture(tmp_path / "q.png")
