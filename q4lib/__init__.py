"""q4lib: training networks whose weights have 4 bits, on an ordinary CPU."""

from .layers import Conv4bit, Linear4bit
from .models import SimpleResNet4bit, VGG4bit
from .optim import QuantAwareAdamW

__all__ = ["Conv4bit", "Linear4bit", "QuantAwareAdamW", "SimpleResNet4bit", "VGG4bit"]
