"""What a gate learns from: the teachers' pooled features and scores of a sample of images.

Shapes: n images, N teachers, D_s features of source s, D features of all sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_DEVIATION = 1e-6
"""Features whose standard deviation is smaller are constant, and are not scaled up."""


@dataclass(frozen=True)
class GateSample:
    """A sample of images as a gate sees them.

    Attributes:
        features: Source -> pooled features `[n, D_s]`. The sources are the teachers, and a
            descriptive network if there is one.
        scores: The teachers' scores side by side, `[n, sum of K_t]`.
        by_name: `[n, sum of K_t]`, logits of the same classes by a network that knows them by their names;
            None if there is no such network.
    """

    features: Mapping[str, Tensor]
    scores: Tensor
    by_name: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def join(self, other: "GateSample") -> "GateSample":
        """Return the images of this sample and, behind them, those of another one with the same sources."""
        features = {name: torch.cat([rows, other.features[name]]) for name, rows in self.features.items()}
        named = None
        if self.by_name is not None and other.by_name is not None:
            named = torch.cat([self.by_name, other.by_name])
        return GateSample(features, torch.cat([self.scores, other.scores]), named)

    def take(self, index: Tensor) -> "GateSample":
        """Return the images of an index or mask `[n]`."""
        features = {name: rows[index] for name, rows in self.features.items()}
        return GateSample(features, self.scores[index], None if self.by_name is None else self.by_name[index])


@dataclass(frozen=True)
class InputScaling:
    """Standardises features and puts the sources side by side.

    Every source has the same share in the sum of squares, whatever its number of features: after scaling,
    the variances of its features add up to 1. So one penalty means the same for networks of any width.

    Attributes:
        sources: Names of the sources, in the order of the inputs.
        mean: `[D]`, means of the features.
        scale: `[D]`, factor of each feature behind the subtraction of its mean.
    """

    sources: tuple[str, ...]
    mean: Tensor
    scale: Tensor

    @staticmethod
    def measure(features: Mapping[str, Tensor]) -> "InputScaling":
        """Measure mean and deviation of the features of a sample of images, `[n, D_s]` per source."""
        means, scales = [], []
        for rows in features.values():
            rows = rows.float()
            deviation = rows.std(dim=0, correction=0)
            constant = deviation < MIN_DEVIATION
            means.append(rows.mean(dim=0))
            scales.append((1 / deviation.masked_fill(constant, torch.inf)) / rows.shape[1] ** 0.5)
        return InputScaling(tuple(features), torch.cat(means), torch.cat(scales))

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the inputs `[n, D]` in float32; sources that the scaling does not know are left out."""
        rows = torch.cat([features[source].float() for source in self.sources], dim=1)
        return (rows - self.mean.to(rows.device)) * self.scale.to(rows.device)

    def find_basis(self, features: Mapping[str, Tensor], components: int) -> Tensor:
        """Return the main directions of each source's inputs, `[D, r]`, with orthonormal columns.

        Weights in this basis are fewer to solve for, and images without owner tell in which directions images
        differ at all.

        Args:
            features: The features of a sample of images, with or without owners.
            components: Largest number of directions per source.
        """
        bases = []
        for part in self(features).split([features[source].shape[1] for source in self.sources], dim=1):
            directions = torch.linalg.eigh(part.T @ part / len(part))[1]  # ascending
            bases.append(directions[:, -components:])
        blocks: Tensor = torch.block_diag(*bases)
        return blocks
