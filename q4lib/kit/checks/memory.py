"""Lesson 07's inline checks: what an image adds, what a layer keeps, what it needs for a moment, what fits."""

from typing import Any

from . import task
from .step import compare_number


@task("07.a")
def per_image(value: Any) -> str:
    """MB that an image adds to what a step saves: 30.5 MB for 8 images, 83.0 MB for 32."""
    likely = {
        83.0 / 32: "that shares out all of the 83.0 MB: a part of them does not grow with the batch",
        30.5 / 8: "that shares out all of the 30.5 MB: a part of them does not grow with the batch",
        83.0 - 30.5: "that is what 24 images add",
        (83.0 - 30.5) / 32: "32 images are 24 more than 8: divide by 24",
        (83.0 - 30.5) / 8: "that is what 24 images add, over 8: divide by 24",
        83.0 / 30.5: "that is how many times as much: how many MB more is it?",
        1e6 * (83.0 - 30.5) / 24: "that is in bytes: MB are asked for",
        24 / (83.0 - 30.5): "upside down: MB over images",
    }
    compare_number(value, (83.0 - 30.5) / 24, likely, "take the difference, over the 24 images more", 0.01)
    return "52.5 MB for 24 images more; what is left does not grow"


@task("07.b")
def kept_by_a_convolution(value: Any) -> str:
    """Bytes of an image that VGG4bit's conv1_2 must keep: its input, 64 channels of 32 by 32 FP32 numbers."""
    numbers = 64 * 32 * 32
    likely = {
        numbers: "that is how many numbers: an FP32 number has 4 bytes",
        numbers / 8: "that is one bit a number, enough for a ReLU: a convolution needs the numbers themselves",
        numbers / 2: "that is 4 bits a number: activations stay in FP32",
        32 * numbers: "that is in bits, or for the whole batch: bytes of one image are asked for",
        128 * numbers: "that is for the whole batch: bytes of one image are asked for",
        8 * numbers: "that is input and output: for its weights' gradient it needs its input alone",
        4 * 3 * 32 * 32: "that is the image, which conv1_1 reads: conv1_2 reads 64 channels",
        4 * 64 * 64 * 9: "these are its weights: they are there anyway, and do not grow with the images",
    }
    compare_number(value, 4 * numbers, likely, "64 channels of 32 by 32 numbers, 4 bytes each", 5e-4)
    return "64 × 32 × 32 numbers of 4 bytes: its input"


@task("07.c")
def read_by_block_2(value: Any) -> str:
    """MB that block 2's depthwise convolution reads, 96 maps of 112 by 112; it writes as many of 56 by 56."""
    read, written = 4 * 96 * 112**2 / 1e6, 4 * 96 * 56**2 / 1e6
    likely = {
        read + written: "that is what it reads and writes: what does it read?",
        written: "that is what it writes, or how many million numbers it reads: an FP32 number has 4 bytes",
        read - written: "both exist at the same time, nothing is to be taken away: what does it read?",
        4 * 16 * 112**2 / 1e6: "that is what the layer before it reads, which makes 96 maps of 16",
        read / 96: "that is one map: it reads 96",
        1e6 * read: "that is in bytes: MB are asked for",
        read * 1e6 / 2**20: "these are MiB, of 1,048,576 bytes: here a MB has 1,000,000",
        8 * read: "that is for 8 images: MB of one are asked for",
    }
    compare_number(value, read, likely, "96 maps of 112 by 112 numbers, 4 bytes each, in millions", 0.005)
    return "4.82 MB read, and 1.20 MB written at the same time: the 6.02 of the highest bar"


@task("07.d")
def largest_batch(value: Any) -> str:
    """The largest batch that fits into 100 MB, at a peak of 6.02 MB an image and 15.2 MB for the parameters."""
    likely = {
        100 / 6.02: "the parameters' 15.2 MB are missing, and a batch is a whole number",
        16: "that leaves no room for the parameters' 15.2 MB",
        17: "that leaves no room for the parameters' 15.2 MB, and it is rounded up",
        84.8 / 6.02: "a batch is a whole number of images",
        15: "that is rounded up: 15 images need 105.5 MB",
        19: "the parameters' 15.2 MB are to be taken away, not added",
        4: "the parameters are there once, not once an image",
        8: "the memory paper's batch fits, but a larger one does, too",
    }
    compare_number(value, 14, likely, "(100 - 15.2) / 6.02, rounded down", 0.01)
    return "14 × 6.02 + 15.2 = 99.5 MB"
