"""The pixels that a network gets of an image: resized and cropped as in the network's own training.

The arithmetic of sizes and crops is that of torchvision, timm and Hugging Face, so that the pixels equal
theirs. Shapes: C channels, H and W in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from ka_ray.config import DESCRIPTIVE, ImagesConfig
from ka_ray.config.preprocessing import Preprocessing

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


IMAGE = "image"
"""Column with the student's view of each image."""


@dataclass(frozen=True)
class View:
    """How the decoded original becomes the square image of a network. Equal views are computed once.

    Attributes:
        resize: ``squash``, ``shorter``, ``longest`` or ``none``; see :class:`Preprocessing`.
        size: Pixels of the resized side.
        crop: Height and width of the result in pixels.
        interpolation: A key of :data:`RESAMPLING`.
        antialias: Whether shrinking averages over pixels.
        round_crop: How the beginning of the crop is rounded: ``half_even`` or ``down``.
        channels: 3 for RGB, 1 for grey.
        fill: Brightness of padding, per channel, in 0 ... 255.
    """

    resize: str
    size: int
    crop: int
    interpolation: str = "bilinear"
    antialias: bool = True
    round_crop: str = "half_even"
    channels: int = 3
    fill: tuple[int, ...] = (0, 0, 0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the result."""
        return self.channels, self.crop, self.crop

    def apply(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Return the pixels of a decoded image, ``[C, H, W]``.

        Args:
            image: The decoded original, in Pillow's mode ``RGB`` or ``L``.

        Raises:
            ValueError: ``resize`` is ``none``, and the image has another size.
        """
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = self._crop(self._resize(image))
        pixels = np.array(image)  # [H, W] or [H, W, C]
        return pixels[None] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resize(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.resize == "none":
            if (width, height) != (self.size, self.size):
                raise ValueError(
                    f"{width} x {height} pixels; preprocessing.resize: none expects {self.size} x {self.size}"
                )
            return image
        if self.resize == "squash":
            target = (self.size, self.size)
        elif self.resize == "shorter":
            # torchvision truncates the longer side.
            target = (
                (self.size, int(self.size * height / width))
                if width <= height
                else (int(self.size * width / height), self.size)
            )
        else:
            ratio = max(height / self.size, width / self.size)
            target = (round(width / ratio), round(height / ratio))  # as timm rounds
        # An image of the right size is not resampled: its pixels stay exactly as they are.
        if image.size == target:
            return image
        return self._resample(image, target)

    def _resample(self, image: Image.Image, target: tuple[int, int]) -> Image.Image:
        if self.antialias or self.interpolation == "nearest":
            return image.resize(target, RESAMPLING[self.interpolation])
        # Pillow always averages when it shrinks. Importing torch takes seconds, so only here.
        import torch
        from torch.nn import functional

        pixels = torch.from_numpy(np.array(image)).float()
        planes = pixels[None, None] if self.channels == 1 else pixels.permute(2, 0, 1)[None]
        resized = functional.interpolate(
            planes, target[::-1], mode=self.interpolation, align_corners=False, antialias=False
        )
        array = resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
        return Image.fromarray(array[:, :, 0] if self.channels == 1 else array)

    def _crop(self, image: Image.Image) -> Image.Image:
        """Cut out the centre; an image that is smaller than the crop is padded."""
        width, height = image.size
        padded = (max(width, self.crop), max(height, self.crop))
        if padded != image.size:
            canvas = Image.new(image.mode, padded, self.fill if self.channels == 3 else self.fill[0])
            # torchvision rounds the padding before an image down, Hugging Face rounds it up.
            up = int(self.round_crop == "down")
            canvas.paste(image, ((padded[0] - width + up) // 2, (padded[1] - height + up) // 2))
            image = canvas
        left, top = self._margin(padded[0]), self._margin(padded[1])
        return image.crop((left, top, left + self.crop, top + self.crop))

    def _margin(self, side: int) -> int:
        excess = side - self.crop
        return excess // 2 if self.round_crop == "down" else round(excess / 2)


def make_view(preprocessing: Preprocessing, images: ImagesConfig) -> View:
    """Return the view of a network.

    Args:
        preprocessing: Section of the network; what it leaves open is as in ``images``.
        images: The config's ``images`` section.
    """
    return view_of(preprocessing.resolve(images.size, images.resize))


def view_of(preprocessing: Preprocessing) -> View:
    """Return the view that a resolved preprocessing describes; see :meth:`Preprocessing.resolve`."""
    resize, size, crop = preprocessing.resize, preprocessing.size, preprocessing.crop
    assert resize is not None
    assert size is not None
    assert crop is not None
    # Padding has the mean colour, as in timm. It is 0 where nothing is padded, so that views can be equal.
    fill = tuple(round(value / preprocessing.rescale) for value in preprocessing.mean)
    return View(
        resize=resize,
        size=size,
        crop=crop,
        interpolation=preprocessing.interpolation,
        antialias=preprocessing.antialias,
        round_crop=preprocessing.round_crop,
        channels=preprocessing.channels,
        fill=fill if resize == "longest" else (0,) * preprocessing.channels,
    )


@dataclass(frozen=True)
class NetworkViews:
    """The views of the networks of a run.

    Attributes:
        student: The student's view. It is the column ``image``.
        teachers: Teacher -> its view.
        descriptive: The view of the network that is nobody's teacher; None: there is none.
    """

    student: View
    teachers: Mapping[str, View]
    descriptive: View | None = None

    @property
    def columns(self) -> dict[str, View]:
        """Column -> view. Networks with equal views share a column."""
        views = [self.student, *self.teachers.values(), self.descriptive]
        distinct = list(dict.fromkeys(view for view in views if view is not None))
        return {IMAGE if i == 0 else f"{IMAGE}@{i}": view for i, view in enumerate(distinct)}

    @property
    def other_columns(self) -> tuple[str, ...]:
        """The columns of teachers' images that differ from the student's."""
        return tuple(name for name in self.without_descriptive().columns if name != IMAGE)

    def column(self, teacher: str) -> str:
        """Return the column with the images of a teacher."""
        return self._find(self.teachers[teacher])

    def _find(self, wanted: View) -> str:
        return next(name for name, view in self.columns.items() if view == wanted)

    def without_descriptive(self) -> "NetworkViews":
        """Return the views of student and teachers alone; their columns keep their names."""
        return replace(self, descriptive=None)

    @property
    def teacher_columns(self) -> dict[str, str]:
        """Teacher -> the column with its images."""
        return {teacher: self.column(teacher) for teacher in self.teachers}

    @property
    def read_columns(self) -> dict[str, str]:
        """Teacher, or :data:`DESCRIPTIVE` -> the column with its images."""
        others = {} if self.descriptive is None else {DESCRIPTIVE: self._find(self.descriptive)}
        return self.teacher_columns | others
