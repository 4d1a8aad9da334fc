"""A restorer in PyTorch, small and in our own words: the other side of a comparison in a test. Imports torch."""

import torch
import torch.nn.functional as functional
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(functional.relu(self.conv1(x)))


class SRResNet(nn.Module):
    """The plain one, without up-sampling. `slope` is that of the activations, published as 0.1.

    With `pair` something comes with the image, as PIP's release has it.
    """

    def __init__(self, width: int, blocks: int, slope: float = 0.1, pair: bool = False):
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)
        self.slope, self.pair = slope, pair

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, None]:
        h = self.body(functional.leaky_relu(self.conv_first(image), self.slope))
        restored = self.conv_last(functional.leaky_relu(self.conv_hr(h), self.slope)) + image
        return (restored, None) if self.pair else restored
