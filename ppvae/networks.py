"""Networks for encoders and decoders. All take any number of leading dims: rows, or draws and rows.

Image networks halve (or double) height and width at each layer, by convolutions of 4 x 4 pixels with stride 2 and padding 1.
"""

import torch
from torch import Tensor, nn

from ppvae.messages import few


def perceptron(n_inputs: int, hidden: tuple[int, ...], n_outputs: int) -> nn.Sequential:
    """Linear layers of the given widths with a smooth nonlinearity between them."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_inputs, width), nn.Softplus()]
        n_inputs = width
    return nn.Sequential(*layers, nn.Linear(n_inputs, n_outputs))


def image_decoder(n_inputs: int, channels: tuple[int, ...], image_shape: tuple[int, int], n_images: int = 1) -> nn.Sequential:
    """From codes (..., n_inputs) to `n_images` images, flat: (..., n_images H W). The last layer is a bias for every pixel.

    channels: of the feature maps from the smallest to the largest, each twice as high and wide as the one before.
    """
    height, width = (side >> len(channels) for side in image_shape)
    layers: list[nn.Module] = [nn.Linear(n_inputs, channels[0] * height * width), nn.Unflatten(1, (channels[0], height, width))]
    for of, to in zip(channels, (*channels[1:], n_images), strict=True):
        layers += [nn.Softplus(), nn.ConvTranspose2d(of, to, 4, stride=2, padding=1)]
    return Flat(*layers, nn.Flatten(), Bias(n_images * image_shape[0] * image_shape[1]))


class ImageEncoder(nn.Module):
    """From flat images, with whatever else is known of the row behind them, (..., n_images H W + C), to features (..., n_outputs)."""

    def __init__(self, image_shape: tuple[int, int], channels: tuple[int, ...], n_images: int, n_others: int) -> None:
        super().__init__()
        height, width = image_shape
        layers: list[nn.Module] = [nn.Unflatten(1, (n_images, height, width))]
        for of, to in zip((n_images, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(of, to, 4, stride=2, padding=1), nn.Softplus()]
        self.images = Flat(*layers, nn.Flatten())
        self.sizes = [n_images * height * width, n_others]
        self.n_outputs = channels[-1] * (height >> len(channels)) * (width >> len(channels)) + n_others

    def forward(self, row: Tensor) -> Tensor:
        images, others = row.split(self.sizes, -1)
        return torch.cat([self.images(images), others], -1)


def check_images(image_shape: tuple[int, int] | None, channels: tuple[int, ...]) -> None:
    """Raise ValueError for rows that are no images, or images that the layers cannot halve."""
    if not channels:
        raise ValueError("a convolutional network needs at least one layer: give hidden the channels of each, as in hidden=(32, 16)")
    if image_shape is None:
        raise ValueError("a convolutional network needs images: give Data an array (N, H, W), or use network='dense'")
    times = 2 ** len(channels)
    if any(side % times for side in image_shape):
        raise ValueError(
            f"images of {few(image_shape)} pixels cannot be halved {len(channels)} times, once for each of hidden={channels}: "
            f"crop or pad them to multiples of {times}, or give fewer layers"
        )


class Flat(nn.Sequential):
    """Layers that know one leading dim alone, given any number of them."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.reshape(-1, x.shape[-1]))
        return out.reshape(*x.shape[:-1], out.shape[-1])


class Bias(nn.Module):
    """x + b."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Rescaled(nn.Module):
    """Columns at the mean 0 and sd 1 that `values` (N, C) would have; a constant column is only centred.

    A column is constant where it varies by no more than its mean is rounded, as in `Data.scale`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        mean, spread = values.double().mean(0), values.double().std(0, correction=0)
        constant = spread <= 8 * torch.finfo(values.dtype).eps * mean.abs()
        self.register_buffer("mean", mean.to(values))
        self.register_buffer("scale", torch.where(constant, 1.0, spread).to(values))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.scale
