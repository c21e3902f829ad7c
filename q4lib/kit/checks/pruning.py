"""Lesson 08's inline checks: how many channels may stay, a channel's norm, what rounded weights take off a file."""

from math import sqrt
from typing import Any

from . import task
from .step import compare_number


@task("08.a")
def channels_that_stay(value: Any) -> str:
    """Hidden channels of block 2 that fit into 2.02 MB beside the 16 maps of 112 by 112 that its first layer reads."""
    maps = 2.02e6 / (4 * 112**2)
    likely = {
        maps - 16: "that is right, but for a part of a channel: round down, so that it fits",
        25: "that is rounded up: with 25 it needs 2.06 MB",
        maps: "the 16 maps that it reads must fit, too: take them away",
        40: "the 16 maps that it reads must fit, too: take them away",
        72: "these are the channels that go: how many stay?",
        0.75: "that is the pruning ratio: how many channels stay?",
        0.25: "that is the share that stays: how many channels are it?",
        32: "that is what its second convolution allows: the first one reads 16 maps of 112 by 112, and asks for fewer",
        4 * maps - 16: "an FP32 number has 4 bytes",
        145: "an FP32 number has 4 bytes",
        56: "the 16 maps are read, not given back: take them away instead of adding them",
        maps / 16: "each map is 112 by 112 numbers of 4 bytes: how many maps fit into 2.02 MB?",
        21: "that is what the memory paper's ratio leaves: here a few more may stay",
    }
    compare_number(value, 24, likely, "how many maps of 112 by 112 numbers fit into 2.02 MB, less the 16 read?", 0.01)
    return "24 of 96: (16 + 24) maps of 50,176 bytes are 2.01 MB; a ratio of 0.75"


@task("08.b")
def norm_of_a_channel(value: Any) -> str:
    """The l2 norm of a channel that gives 3 and 0 for one image, 4 and 12 for another."""
    likely = {
        169.0: "that is the sum of the squares: take its root",
        3 + sqrt(160): "that adds the images' norms: add the squares of both, then take one root",
        (3 + sqrt(160)) / 2: "that is the mean of the images' norms: add the squares of both, then take one root",
        19.0: "that adds the numbers themselves: add their squares, then take the root",
        12.0: "that is the largest number: all of them count",
        sqrt(160): "that is the second image alone",
        3.0: "that is the first image alone",
        6.5: "that divides by the root of how many there are: nothing is divided here",
        sqrt(169 / 2): "that is a mean over the images: nothing is divided here",
        4.75: "that is the mean: add the squares, then take the root",
        sqrt(19): "that is the root of the sum: square each number first",
    }
    compare_number(value, 13.0, likely, "add the four squares, then take the root", 0.005)
    return "9 + 0 + 16 + 144 = 169, and its root"


@task("08.c")
def off_the_file(value: Any) -> str:
    """MB by which a file gets smaller when 2,189,760 weights go from FP32 to codes of 4 bits."""
    weights = 2_189_760
    likely = {
        weights * 0.5 / 1e6: "that is what the codes take: what is gone is the difference to FP32",
        weights * 4 / 1e6: "that is what they took in FP32: the codes take half a byte each",
        weights * 28 / 1e6: "these are millions of bits: 8 are a byte",
        weights * 3 / 1e6: "two codes share a byte: half a byte each, not a whole one",
        weights * 3.5: "that is in bytes: MB are asked for",
        weights * 3.5 / 2**20: "these are MiB, of 1,048,576 bytes: here a MB has 1,000,000",
        3.5: "that is of one weight, in bytes",
        8.0: "that is how many times smaller they get: by how many MB?",
        weights / 1e6: "that counts weights: each loses 3.5 bytes",
    }
    compare_number(value, weights * 3.5 / 1e6, likely, "4 bytes become half a byte, 2,189,760 times", 0.04)
    return "2,189,760 × 3.5 bytes; a scale each layer or channel, and its name, take a little back"
