"""Packed files: as small as they claim, predicting what the model predicts, refused in one line when damaged."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from q4lib import SimpleResNet4bit, VGG4bit
from q4lib.files import FileError, load_tensors, save_tensors
from q4lib.layers import FP32, quantized_layers
from q4lib.pack import KIND, load_model, pack_codes, save_model, unpack_codes
from q4lib.quant import fake_quantize, qmax
from q4lib.recipes import RECIPES
from q4lib.step import build

EVERY_BITS = (*range(2, 9), FP32)


def trained(build, **options):
    """A model whose biases and batch norm are no longer those it starts with."""
    torch.manual_seed(0)
    model = build(**options)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5) if name.endswith(("var", "weight")) else tensor.normal_(std=0.3)
        elif not tensor.dim():
            tensor.fill_(391)
    return model


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def packed(path) -> Path:
    save_model(path, trained(SimpleResNet4bit))
    return path


def refuse(path, *words):
    """Loading raises FileError, in one line that names the file; any other exception fails the test."""
    with pytest.raises(FileError) as caught:
        load_model(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said, said
    assert all(word in said for word in words), said


class TestCodes:
    @settings(max_examples=100, deadline=None)
    @given(st.data(), st.integers(2, 8), st.lists(st.integers(1, 7), min_size=0, max_size=4))
    def test_round_trip(self, data, bits, shape):
        q = qmax(bits)
        count = torch.Size(shape).numel()
        values = data.draw(st.lists(st.integers(-q, q), min_size=min(count, 40), max_size=min(count, 40)))
        codes = torch.tensor((values * count)[:count], dtype=torch.int8).reshape(shape)
        packed = pack_codes(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.numel() == (count if bits > 4 else (count + 1) // 2)
        assert torch.equal(unpack_codes(packed, tuple(shape), bits), codes)

    @pytest.mark.parametrize("bits", range(2, 9))
    def test_every_pair_of_codes(self, bits):
        every = torch.arange(-qmax(bits), qmax(bits) + 1, dtype=torch.int8)
        codes = torch.cartesian_prod(every, every)
        assert torch.equal(unpack_codes(pack_codes(codes, bits), tuple(codes.shape), bits), codes)

    def test_layout(self):
        """Two's complement, low nibble first, a last odd code alone: the format that other programs would read."""
        assert pack_codes(torch.tensor([1, -1, 7, -7, 3], dtype=torch.int8), 4).tolist() == [0xF1, 0x97, 0x03]
        assert pack_codes(torch.tensor([1, -1], dtype=torch.int8), 5).tolist() == [1, 255]

    def test_order_is_that_of_the_shape_not_of_memory(self):
        codes = torch.randint(-7, 8, (3, 4, 2, 2), dtype=torch.int8)
        assert torch.equal(pack_codes(codes.contiguous(memory_format=torch.channels_last), 4), pack_codes(codes, 4))

    @pytest.mark.parametrize("bits", [4, 8])
    def test_a_wrong_count_is_an_error(self, bits):
        codes = torch.zeros(9, dtype=torch.int8)
        for count in (7, 11, 90):
            with pytest.raises(ValueError, match=f"do not hold {count} codes of {bits} bits"):
                unpack_codes(pack_codes(codes, bits), (count,), bits)


class TestSize:
    def test_vgg_is_1_6_megabytes_and_7_8_times_smaller(self, tmp_path):
        """As the file system has it."""
        sizes = {}
        for bits in (4, 8, FP32):
            save_model(tmp_path / str(bits), VGG4bit(bits=bits))
            sizes[bits] = os.path.getsize(tmp_path / str(bits))
        assert 1.55e6 < sizes[4] < 1.68e6
        assert 13.0e6 < sizes[FP32] < 13.1e6
        assert sizes[FP32] / sizes[4] >= 7.8
        assert sizes[FP32] / sizes[8] >= 3.9

    def test_what_is_in_the_file(self, path):
        """No FP32 weight is left in it; scales, biases and batch norm are FP32."""
        save_model(path, VGG4bit(per_channel=True))
        tensors = load_file(path)
        codes = {name: t for name, t in tensors.items() if t.dtype == torch.uint8}
        assert list(codes) == sorted(f"{name}.codes" for name in quantized_layers(VGG4bit()))
        rest = {name: t for name, t in tensors.items() if name not in codes and "num_batches" not in name}
        assert {t.dtype for t in rest.values()} == {torch.float32}
        channels = 64 + 64 + 128 + 128 + 256 + 256 + 512
        assert sum(t.numel() for t in rest.values()) == 2 * (channels + 10) + 4 * channels


@pytest.mark.parametrize("build", [VGG4bit, SimpleResNet4bit])
@pytest.mark.parametrize("bits, per_channel", [*((bits, False) for bits in EVERY_BITS), (4, True), (7, True)])
def test_loaded_model_predicts_exactly_what_was_saved(path, build, bits, per_channel):
    """The layers quantize the loaded weights once more: that must not move one of them."""
    memory_format = torch.channels_last if bits % 2 == 0 else torch.contiguous_format
    model = trained(build, bits=bits, per_channel=per_channel, num_classes=7).to(memory_format=memory_format)
    save_model(path, model)
    loaded, _ = load_model(path)
    assert type(loaded) is build and not loaded.training
    assert {(layer.bits, layer.per_channel) for layer in quantized_layers(loaded).values()} == {(bits, per_channel)}
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.to(memory_format=memory_format)(x), model.eval()(x))
    for name, tensor in model.state_dict().items():
        on_grid = bits != FP32 and name.removesuffix(".weight") in quantized_layers(model)
        expected = fake_quantize(tensor, bits, per_channel) if on_grid else tensor
        assert torch.equal(loaded.state_dict()[name], expected), name


def test_one_fixed_scale_for_all_layers(path):
    """The step is that of the largest weight at the start; weights that grow beyond it are cut; a file keeps it."""
    model, _ = build(replace(RECIPES["digits"], fixed_scale=True), 10, "cpu")
    layers = quantized_layers(model)
    step = max(layer.weight.abs().max() for layer in layers.values()) / 7
    with torch.no_grad():
        model.convs[0].weight.mul_(3)
    for name, layer in layers.items():
        by_hand = (layer.weight / step).round().clamp(-7, 7) * step
        assert torch.equal(layer.quantized_weight(), by_hand), name
    assert len(model.convs[5].quantized_weight().unique()) < 7
    model.convs[0].quantized_weight().sum().backward()
    assert (model.convs[0].weight.grad == 1).all()
    save_model(path, model)
    for name, layer in quantized_layers(load_model(path)[0]).items():
        assert torch.equal(layer.quantized_weight(), layers[name].quantized_weight()), name


def test_the_range_for_normal_weights(path):
    """An outlier is cut and no longer widens the grid; its gradient goes through; a file keeps the weights."""
    model, _ = build(replace(RECIPES["digits"], normal_range=True), 10, "cpu")
    layers = quantized_layers(model)
    with torch.no_grad():
        model.convs[3].weight[0, 0, 0, 0] = 9.0
    for name, layer in layers.items():
        w = layer.weight.detach()
        step = torch.tensor(2.475 * w.double().square().mean().sqrt().item() / 7)
        assert step < w.abs().max() / 7, name
        torch.testing.assert_close(layer.quantized_weight(), (w / step).round().clamp(-7, 7) * step, msg=name)
    model.convs[3].quantized_weight().sum().backward()
    assert (model.convs[3].weight.grad == 1).all()
    save_model(path, model)
    for name, layer in quantized_layers(load_model(path)[0]).items():
        assert torch.equal(layer.quantized_weight(), layers[name].quantized_weight()), name


def test_saving_leaves_the_model_as_it_was(path):
    model = trained(SimpleResNet4bit).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(path, model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_loaded_model_packs_to_the_same_file(packed, tmp_path):
    save_model(tmp_path / "again", load_model(packed)[0])
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()


def test_every_layer_may_have_its_own_bits(path):
    model = trained(SimpleResNet4bit).eval()
    for layer, bits in zip(quantized_layers(model).values(), (8, 2, 3, 4, 5, 6, FP32), strict=True):
        layer.bits, layer.per_channel = bits, bits % 2 == 1
    save_model(path, model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(path)[0](x), model(x))


def test_a_layer_of_zeros(path):
    model = trained(SimpleResNet4bit).eval()
    model.convs[1].weight.data.zero_()
    save_model(path, model)
    assert not load_model(path)[0].convs[1].weight.any()


def test_facts_come_back(path):
    given = {"data": "cifar10", "classes": ["a", "é", "\u2028"], "epoch": 3, "test_acc": 81.25, "nothing": None}
    save_model(path, trained(SimpleResNet4bit), **given)
    facts = load_model(path)[1]
    assert given.items() <= facts.items()
    assert (facts["model"], facts["num_classes"]) == ("simpleresnet4bit", 10)
    assert set(facts["bits"].values()) == {4} and set(facts["per_channel"].values()) == {False}


def test_equal_content_gives_equal_bytes(tmp_path):
    """Nothing in the file depends on the time, the path or the memory format."""
    contents = set()
    for i in range(5):
        path = tmp_path / str(i) / f"{i}.safetensors"
        path.parent.mkdir()
        model = trained(SimpleResNet4bit).to(memory_format=torch.channels_last if i % 2 else torch.contiguous_format)
        save_model(path, model, data="digits", classes=list("0123456789"))
        contents.add(path.read_bytes())
    assert len(contents) == 1


class TestRefused:
    def test_cut_short(self, packed):
        whole = packed.read_bytes()
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        for length in (0, 1, 7, 8, 9, 100, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
            packed.write_bytes(whole[:length])
            refuse(packed)

    def test_one_byte_longer(self, packed):
        packed.write_bytes(packed.read_bytes() + b"\0")
        refuse(packed)

    @pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
    def test_one_byte_changed(self, packed, mask):
        """Anywhere: in the header's length, its JSON, the digest, the codes, the scales."""
        whole = packed.read_bytes()
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        for at in (*range(12), *range(mask % 5, header, 23), *range(header, len(whole), 997), len(whole) - 1):
            damaged = bytearray(whole)
            damaged[at] ^= mask
            packed.write_bytes(damaged)
            refuse(packed)

    def test_contents_exchanged_under_the_same_digest(self, packed):
        """Every byte is still there, and the header is untouched."""
        whole = packed.read_bytes()
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        places = {name: entry["data_offsets"] for name, entry in json.loads(whole[8:header]).items() if name[0] != "_"}
        (a, b), (c, d) = places["bns.2.weight"], places["bns.3.weight"]
        body = bytearray(whole[header:])
        body[a:b], body[c:d] = body[c:d], body[a:b]
        packed.write_bytes(whole[:header] + body)
        refuse(packed, "damaged")

    def test_another_programs_file(self, path):
        save_file({"weight": torch.zeros(3)}, path)
        refuse(path, "another program")

    @pytest.mark.parametrize("entry", ["{", "[]", "3", "null", '"x"', "{}", '{"kind": []}', '{"kind": "' + KIND + '"}'])
    def test_another_programs_file_with_our_entry(self, path, entry):
        save_file({"weight": torch.zeros(3)}, path, {"q4lib": entry})
        refuse(path)

    @pytest.mark.parametrize("content", [b"", b"\0", b"PK\x03\x04" * 50, b"hello, world\n" * 100, b"\xff" * 64,
                                         b"\x02" + b"\0" * 7 + b"{}"], ids=repr)  # fmt: skip
    def test_no_safetensors_file(self, path, content):
        path.write_bytes(content)
        refuse(path)

    def test_missing_folder_or_no_file(self, path, tmp_path):
        refuse(path, "does not exist")
        refuse(path / "deeper")
        refuse(tmp_path)

    def test_another_version_and_another_kind(self, path, packed):
        tensors, facts = load_tensors(packed, KIND)
        for kind in ("packed model, version 2", "checkpoint"):
            save_tensors(path, tensors, kind, facts)
            refuse(path, kind)

    @pytest.mark.parametrize("change", [
        {"model": "vgg16"}, {"model": ["vgg4bit"]}, {"model": None}, {"model": "vgg4bit"}, {"num_classes": 100},
        {"num_classes": "ten"}, {"num_classes": -1}, {"bits": 4}, {"bits": {}}, {"bits": None}, {"per_channel": []},
    ], ids=str)  # fmt: skip
    def test_facts_that_no_model_has(self, packed, change):
        """Well-formed and with a right digest: written by another version, or by hand."""
        tensors, facts = load_tensors(packed, KIND)
        save_tensors(packed, tensors, KIND, facts | change)
        refuse(packed)

    @pytest.mark.parametrize("name", ["bns.0.weight", "convs.0.codes", "convs.0.scale", "fc.bias"])
    def test_tensors_that_no_model_has(self, packed, name):
        tensors, facts = load_tensors(packed, KIND)
        without = {key: tensor for key, tensor in tensors.items() if key != name}
        unlike = {"one missing": without, "one too many": tensors | {"more": torch.zeros(1)},
                  "another shape": tensors | {name: torch.zeros(3, 5)}, "none": {}}  # fmt: skip
        for changed in unlike.values():
            save_tensors(packed, changed, KIND, facts)
            refuse(packed)


class TestWriting:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
    def test_full_disk_leaves_the_earlier_file(self, packed):
        """The temporary file that the save would use leads to a device without space."""
        before = packed.read_bytes()
        Path(packed.parent, f".{packed.name}.part").symlink_to("/dev/full")
        with pytest.raises(FileError) as caught:
            save_model(packed, trained(SimpleResNet4bit, num_classes=5))
        said = str(caught.value)
        assert str(packed) in said and "No space left" in said and "\n" not in said
        assert packed.read_bytes() == before
        assert load_model(packed)[1]["num_classes"] == 10
        assert os.listdir(packed.parent) == [packed.name], "a part of a file takes space on a full disk"

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileError, match="cannot write .*No such file"):
            save_model(tmp_path / "none" / "model.safetensors", trained(SimpleResNet4bit))

    def test_a_folder_is_in_the_way(self, tmp_path):
        with pytest.raises(FileError, match=f"cannot write {tmp_path}"):
            save_model(tmp_path, trained(SimpleResNet4bit))

    def test_replaces_and_leaves_nothing_else(self, packed):
        Path(packed.parent, f".{packed.name}.part").write_bytes(b"left by a killed process")
        save_model(packed, trained(SimpleResNet4bit, num_classes=5))
        assert load_model(packed)[1]["num_classes"] == 5
        assert os.listdir(packed.parent) == [packed.name]

    def test_a_loaded_model_survives_its_file(self, packed):
        model = load_model(packed)[0]
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        packed.write_bytes(b"\0" * packed.stat().st_size)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_nan_names_the_layer_and_writes_nothing(self, path):
        model = trained(VGG4bit)
        model.conv2_1.weight.data[0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="layer conv2_1: a weight is nan or infinite"):
            save_model(path, model)
        assert not path.exists()

    def test_a_network_that_could_not_be_loaded_is_not_saved(self, path):
        with pytest.raises(ValueError, match="Sequential"):
            save_model(path, torch.nn.Sequential(trained(SimpleResNet4bit).fc))
        assert not path.exists()
