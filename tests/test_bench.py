"""The benchmark compares like with like, its intervals are right, and bench and doctor print all they promise."""

import math
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from q4lib.kit import bench, breakdown, doctor
from q4lib.layers import QuantizedWeight
from q4lib.machine import processor
from q4lib.quant import fake_quantize, scale
from q4lib.recipes import RECIPES
from q4lib.train import RunError

QUANTIZED = [name for name in bench.RIVALS if name != "FP32"]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(10, (4,), generator=generator)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (10, 2), (20, 6), (30, 10), (100, 40), (1100, 518)])
def test_interval_has_the_ranks_of_the_sign_tests_table(n, rank):
    values = torch.randperm(n, generator=torch.Generator().manual_seed(n)).add(1).tolist()
    assert bench.median_interval(values) == ((n + 1) / 2, rank, n + 1 - rank)
    missed = sum(math.comb(n, i) for i in range(rank)) / 2 ** (n - 1)
    assert missed <= 0.05 < missed + math.comb(n, rank) / 2 ** (n - 1)


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="5 rounds give no 95% interval"):
        bench.main(pairs=5)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("model", ["vgg4bit", "simpleresnet4bit"])
def test_rivals_quantize_as_we_do_at_every_step(name, model, batch):
    arm = bench.Arm(model, bench.RIVALS[name].replace)
    for _ in range(3):
        for layer, used in zip(arm.layers, arm.weights(), strict=True):
            w = layer.weight.detach()
            far = ((w / scale(w)).abs().frac() - 0.5).abs() > 1e-5
            torch.testing.assert_close(used[far], fake_quantize(w)[far], rtol=1e-6, atol=0)
        arm.step(*batch)


@pytest.mark.parametrize("name", bench.RIVALS)
def test_rivals_start_from_our_network_and_pass_the_check(name, batch):
    ours, arm = bench.Arm("simpleresnet4bit"), bench.Arm("simpleresnet4bit", bench.RIVALS[name].replace)
    for mine, theirs in zip(ours.layers, arm.layers, strict=True):
        assert torch.equal(mine.weight, theirs.weight)
    shapes = [[p.shape for p in each.model.parameters()] for each in (ours, arm)]
    assert shapes[0] == shapes[1]
    for _ in range(2):
        bench.check_arm(name, arm, ours, *batch)
        ours.step(*batch)
    assert all(map(torch.equal, arm.weights(), (layer.weight for layer in arm.layers))) == (name == "FP32")


def test_fake_quantize_arm_has_our_gradient(batch):
    ours, arm = bench.Arm("simpleresnet4bit"), bench.Arm("simpleresnet4bit", bench.torch_layer)
    for each in (ours, arm):
        each.step(*batch)
    for mine, theirs in zip(ours.layers, arm.layers, strict=True):
        torch.testing.assert_close(mine.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-6)


def three_bits(layer):
    layer.bits = 3
    return layer


def per_channel(layer):
    layer.per_channel = True
    return layer


@pytest.mark.parametrize("wrong", [three_bits, per_channel, bench.fp32_twin])
def test_an_arm_on_another_grid_is_refused(wrong, batch):
    ours, arm = bench.Arm("simpleresnet4bit"), bench.Arm("simpleresnet4bit", wrong)
    with pytest.raises(RunError, match="elsewhere: it is not the same network"):
        bench.check_arm("wrong", arm, ours, *batch)


def test_an_arm_with_another_loss_is_refused(batch):
    ours, arm = bench.Arm("simpleresnet4bit"), bench.Arm("simpleresnet4bit")
    arm.model.set_submodule("bns.0", nn.Identity())
    with pytest.raises(RunError, match="has loss"):
        bench.check_arm("wrong", arm, ours, *batch)


def test_the_breakdown_adds_up(monkeypatch, capsys):
    """The parts of a step fill it, the quantizer is no multiple of forward, the flops are those of the network."""
    monkeypatch.setattr(breakdown, "SIZES", (64,))
    monkeypatch.setattr(breakdown, "matmul_seconds", lambda n, dtype: 2 * n**3 / 1e9)
    steps = {"fp32": {"paper": 0.8, "fast": 3.2}}
    monkeypatch.setattr(breakdown, "fastest_steps", lambda precision, rounds: steps[precision])
    breakdown.main("digits", steps=1, size=8)
    chosen, other, _, ratio = capsys.readouterr().out.splitlines()[2:]
    assert "`paper` take 13.7 times as long as all of `fast`, both in fp32." in ratio
    assert "8 images, fp32 (chosen)" in chosen and "2 images, bf16 " in other
    shares = dict(re.findall(r"(data|forward|backward|optimizer|forward:) ([\d.]+) %", chosen))
    quantizer = float(shares.pop("forward:"))
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=0.3) and quantizer < float(shares["forward"]) * 3
    convs = [1024 * 27 * 16, 1024 * 144 * 16, 256 * 144 * 32, 256 * 288 * 32, 64 * 288 * 64, 64 * 576 * 64]
    flops = 2 * 8 * (3 * (sum(convs) + 640) - convs[0])
    share, milliseconds = (float(cell.split()[0].replace(",", "")) for cell in chosen.split(" | ")[1:3])
    assert share == pytest.approx(flops / (milliseconds / 1000) / 1e9, rel=0.1, abs=0.01)


def test_fast_is_compared_with_the_paper_s_epochs(monkeypatch):
    """391 steps in each of 110 epochs against 98 in each of eight, the fastest of the rounds of each."""
    took = {"paper": iter([0.9, 0.8, 1.1]), "fast": iter([3.9, 3.6, 3.2])}
    monkeypatch.setattr(breakdown, "step_seconds", lambda recipe, precision, steps: next(took[recipe.name]))
    assert breakdown.fastest_steps("fp32", 3) == {"paper": 0.8, "fast": 3.2}
    assert breakdown.times_paper(0.8, 3.2) == pytest.approx(110 * 391 * 0.8 / (8 * 98 * 3.2))


def test_the_breakdown_times_the_quantizer_of_the_layers(monkeypatch):
    """Once more after each step, and as the forward pass has it: on the layer's own range."""
    called, real = [], QuantizedWeight.quantized_weight
    monkeypatch.setattr(QuantizedWeight, "quantized_weight", lambda layer: called.append(layer) or real(layer))
    breakdown.step_parts(RECIPES["digits"], "fp32", size=8, steps=1)
    assert {called.count(layer) for layer in called} == {2 * 2}


def test_a_small_run_prints_every_row(monkeypatch, capsys):
    monkeypatch.setattr(bench, "memory_row", partial(bench.memory_row, runs=1))
    bench.main(pairs=6, batch=2, images=64)
    printed = capsys.readouterr().out
    head, *rows = printed.split("\n\n")[1].splitlines()
    assert printed.startswith(f"VGG4bit, batch 2, fp32, channels_last; {processor()}")
    assert f"threads: {torch.get_num_threads()}, torch {torch.__version__}" in printed
    assert {line.count("|") for line in (head, *rows)} == {6}
    names = [row.split(" | ")[0] for row in rows[1:]]
    assert names == [
        "| 4-bit training step / its FP32 twin's",
        "| 4-bit training step / Brevitas'",
        "| 4-bit training step / torch FakeQuantize's",
        "| 4-bit training step's FLOP/s / GEMM's",
        "| 4-bit peak memory / its FP32 twin's",
        "| data path, images a second",
    ]
    for row in rows[1:]:
        value, interval = row.split(" | ")[1:3]
        median, low, high = (float(text.replace(",", "")) for text in (value, *interval.split(" ... ")))
        assert 0 < low <= median <= high
    assert [("<=" in row) for row in rows[1:]] == [True] * 3 + [False] * 3
    # Multiply-adds an image: six convolutions and two products; the first convolution needs no gradient of the image.
    convs = [1024 * 27 * 64, 1024 * 576 * 64, 256 * 576 * 128, 256 * 1152 * 128, 64 * 1152 * 256, 64 * 2304 * 256]
    flops = 2 * 2 * (3 * (sum(convs) + 4096 * 512 + 512 * 10) - convs[0])
    assert f"{flops / 1e9:.1f} GFLOP a step" in rows[4]


def test_what_is_missing_is_said_and_the_rest_measured(monkeypatch, capsys):
    def only_linux(*args):
        raise FileNotFoundError

    monkeypatch.setitem(sys.modules, "brevitas.nn", None)
    monkeypatch.setattr(bench, "memory_row", only_linux)
    bench.main(6, 2, "simpleresnet4bit", images=64)
    rows = capsys.readouterr().out.split("\n\n")[1].splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows if "not measured" in row] == [
        "| 4-bit training step / Brevitas'",
        "| 4-bit peak memory / its FP32 twin's",
    ]
    assert len(rows) == 6 and {row.count("|") for row in rows} == {6}


@pytest.fixture
def small_doctor(monkeypatch):
    monkeypatch.setattr(doctor, "IMAGES", 2)
    monkeypatch.setattr(doctor, "matmul_seconds", lambda n, dtype: bench.matmul_seconds(64, dtype, 1))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_doctor_prints_every_recipe(small_doctor, monkeypatch, capsys):
    recipes = {**RECIPES, "auto": replace(RECIPES["paper"], name="auto", precision="auto", val=5000, epochs=1)}
    monkeypatch.setattr(doctor, "RECIPES", recipes)
    monkeypatch.setattr(doctor, "_step_seconds", lambda *way: {"fp32": 1, "bf16": 4}[way[0]] * len(way[1]) / 100)
    monkeypatch.setattr(doctor, "step_seconds", lambda *args: 0.5)
    monkeypatch.setattr(doctor, "_image_seconds", lambda *args: 0.01)
    doctor.main()
    printed = capsys.readouterr().out
    for recipe in recipes:
        assert f"  {recipe}: " in printed
    assert "  paper: 12.3 h: 150 epochs of 391 steps, 500 ms each, and 100.0 s of evaluation" in printed
    assert "  miniature: 14 min: 6 epochs of 79 steps" in printed
    assert "  digits: 5 min: 20 epochs of 23 steps, 500 ms each, and 3.6 s of evaluation" in printed
    assert "  auto: 4 min: 1 epochs of 352 steps, 500 ms each, and 50.0 s of evaluation" in printed
    assert "  record: 2.6 h: 25 epochs of 98 steps, 500 ms each, and 300.0 s of evaluation" in printed  # mirrored, too
    for fact in ("GFLOP/s", "fastest: fp32 contiguous; bf16 is 4.0 times slower", "GB free", "digits", "cifar100"):
        assert fact in printed


def test_doctor_takes_the_precision_that_train_takes(small_doctor, monkeypatch, capsys):
    """Weights and images are laid out channels_last there, whatever is fastest else."""
    took = {
        ("fp32", "contiguous"): 1,
        ("fp32", "channels_last"): 3,
        ("bf16", "contiguous"): 4,
        ("bf16", "channels_last"): 2,
    }
    monkeypatch.setattr(doctor, "_step_seconds", lambda *way: took[way])
    assert doctor._compare_steps() == "bf16" and "fastest: fp32 contiguous" in capsys.readouterr().out


def test_doctor_measures_here(small_doctor, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "RECIPES", {"digits": RECIPES["digits"]})
    monkeypatch.setenv("Q4_HOME", str(tmp_path / "not" / "there"))
    doctor.main()
    printed = capsys.readouterr().out
    for way in ("fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last"):
        assert f"  {way}: " in printed
    assert "  digits: " in printed and "simpleresnet4bit on digits, fp32, cpu" in printed
    assert f"Q4_HOME: {tmp_path / 'not' / 'there'}, " in printed
    assert "  cifar10: not here; q4 data get cifar10 downloads 170 MB" in printed
    assert not (tmp_path / "not").exists()
