"""ResNet-18 and ResNet-50, so that no benchmark needs torchvision.

He et al. 2015, with the stride on the 3 x 3 convolution. For small images the first layer is a
3 x 3 convolution with stride 1 and no pooling, as usual for 32 pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)
SMALL_IMAGE = 64  # pixels


class Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        else:
            layers = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.layers = nn.Sequential()
        for number, (a, b, size, step) in enumerate(layers):
            if number:
                self.layers.append(nn.ReLU(inplace=True))
            self.layers.append(nn.Conv2d(a, b, size, step, padding=size // 2, bias=False))
            self.layers.append(nn.BatchNorm2d(b))
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != self.outputs:
            convolution = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(self.outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    def __init__(self, depth: int, classes: int, pixels: int):
        super().__init__()
        if pixels <= SMALL_IMAGE:
            first = [nn.Conv2d(3, 64, 3, padding=1, bias=False)]
        else:
            first = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)]
        first += [nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
        if pixels > SMALL_IMAGE:
            first.append(nn.MaxPool2d(3, 2, padding=1))
        self.stem = nn.Sequential(*first)
        self.blocks = nn.Sequential()
        inputs = 64
        for stage, (count, width) in enumerate(zip(BLOCKS[depth], WIDTHS, strict=True)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                block = Block(inputs, width, stride, bottleneck=depth >= 50)
                self.blocks.append(block)
                inputs = block.outputs
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


def training_batch(batch: int, pixels: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, pixels, pixels, generator=generator)
    return images, torch.randint(0, classes, (batch,), generator=generator)
