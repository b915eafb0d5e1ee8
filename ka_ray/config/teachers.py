"""The `teachers` section: network, weights, classes and preprocessing of each teacher."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ka_ray.config.base import ClassNames, ExistingPath, ModelSource, Section
from ka_ray.config.network_training import NetworkTrainingConfig
from ka_ray.config.preprocessing import Preprocessing
from ka_ray.config.ranges import MAX_NAME_LENGTH, Count, CountOrZero, Name, PositiveOrZero, Rate, Seed, Text
from ka_ray.config.shorthands import accept_source
from ka_ray.storage.files import is_path

NETWORK_NAMES = "plain, a torchvision model name, timm/MODEL, or package.module:factory"
"""What the key `network` accepts, for descriptions and messages."""

SUFFIX = re.compile(r"(\.(safetensors|pth|pt|ckpt|bin|tar|onnx|torch|pkl))+$", re.IGNORECASE)
"""Suffixes of files with weights."""


class Augmentation(Section):
    """Label-preserving views of an image, drawn again in every epoch."""

    flip: bool = Field(False, description="Mirror left-right with probability 1/2.")
    shift: int = Field(0, ge=0, le=4096, description="Shift by up to this many pixels in each direction.")

    @property
    def on(self) -> bool:
        """Whether a view can differ from the image itself."""
        return self.flip or self.shift > 0


class TeachingConfig(NetworkTrainingConfig):
    """How a teacher is trained on labelled images (cross-entropy, AdamW, one-cycle learning rate)."""

    epochs: Count = Field(10, description="Number of passes over the images.")
    batch_size: Count = Field(128, description="Images per step, over all workers together.")
    learning_rate: Rate = Field(5e-3, description="Peak of the one-cycle schedule.")
    weight_decay: PositiveOrZero = Field(
        5e-4, description="Weight decay of AdamW, for all parameters, also biases and norms."
    )
    augment: Augmentation = Field(Augmentation(), description="Views of the images that it learns from.")
    seed: Seed | None = Field(
        None, description="Seed of its first weights, of shuffling and of views; null: that of the run."
    )
    start: ExistingPath | None = Field(
        None,
        description="A checkpoint that training starts from, such as that of a pretrained network: weights "
        "that fit are taken, and the last layer is new. null: random weights.",
    )


class TeacherConfig(Section):
    """One trained classifier: `from` a model that says what it is, or described key by key.

    Give `checkpoint`, or `training` to train it at the start of the run. What is left open is found out from
    `from` by :func:`ka_ray.teachers.sources.describe.describe_teacher` when a run is planned; until then,
    `network` and `classes` are empty.
    """

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True, json_schema_extra=accept_source)

    name: Name = Field(description="Unique among the teachers; by default from the path.")
    from_: ModelSource | None = Field(
        None,
        alias="from",
        description="A checkpoint; a folder of timm, of transformers or of a finished run; or a name: "
        "hf-hub:ORGANISATION/MODEL, timm/MODEL, a torchvision model. The other keys override what is found.",
    )
    network: str = Field("", description=f"{NETWORK_NAMES}; by default found in `from`.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the network.")
    classes: ClassNames = Field(
        (),
        description="In the order of the scores: a list, or a file: one name per line, or JSON; by default "
        "found in `from`.",
    )
    checkpoint: ExistingPath | None = Field(None, description=".safetensors, or .pt / .pth with a state dict")
    weights: Text | None = Field(
        None,
        description="For a torchvision model, the name of published weights, such as IMAGENET1K_V1: their "
        "preprocessing is the default, and they are loaded if there is neither `checkpoint` nor `training`.",
    )
    output: Text | CountOrZero | None = Field(
        None,
        description="For a network that returns several outputs, which one is the scores: its name, or its "
        "position from 0; null: the one named `logits`, or the only one with a score per class.",
    )
    final_activation: Literal["none", "softmax", "log_softmax", "sigmoid"] | None = Field(
        None,
        description="What the network ends in; it is undone, because teachers are compared by the scores "
        "before it. null: nothing, but refused if a few images show the opposite; none: nothing, for sure.",
    )
    preprocessing: Preprocessing = Field(
        Preprocessing(), description="The images that the network was trained with."
    )
    training: TeachingConfig | None = Field(None, description="null: the weights come from `checkpoint`.")

    @model_validator(mode="before")
    @classmethod
    def _expand_source(cls, given: Any) -> Any:
        """Accept a source instead of a mapping, and name the teacher after its source."""
        if isinstance(given, str | Path):
            given = {"from": str(given)}
        if isinstance(given, Mapping) and not given.get("name") and is_path(given.get("from")):
            return {**given, "name": name_of_source(str(given["from"]))}
        return given

    @model_validator(mode="after")
    def _is_described(self) -> "TeacherConfig":
        if self.checkpoint is not None and self.training is not None:
            raise ValueError(f"teacher {self.name}: give `checkpoint` or `training`, not both")
        if self.from_ is not None and self.training is not None:
            raise ValueError(f"teacher {self.name}: `from` has trained weights; leave out `training`")
        if self.from_ is None:
            if not self.network:
                raise ValueError(f"teacher {self.name}: network: is missing; give it, or `from`")
            if not self.classes and self.weights is None:
                raise ValueError(f"teacher {self.name}: classes: are missing; give them, or `from`")
        if len(self.classes) == 1:
            raise ValueError(
                f"teacher {self.name}: classes: one class, {list(self.classes)}; at least two are needed"
            )
        return self


GENERIC_NAMES = re.compile(
    r"(model|pytorch_model|model_best|best|last|final|latest|checkpoint|checkpoints|ckpt|weights|student|teacher"
    r"|version_\d+|lightning_logs|(checkpoint|model|epoch)[-_=]?\d+.*)(\.pth|\.pt)?"
)
"""Names of files and folders that training scripts give to every model: no name for a teacher."""


def name_of_source(source: str) -> str:
    """Return the name of a teacher that is described only by its source.

    Args:
        source: Value of the key `from`.

    Returns:
        The last part of the path that says something, in the characters that names may have.

    Example:
        >>> [name_of_source(path) for path in ("dogs.safetensors", "birds/model_best.pth.tar", "hf/my pets/")]
        ['dogs', 'birds', 'my_pets']
    """
    parts = [part for part in re.split(r"[/\\:]+", source) if part not in ("", ".", "..", "~")]
    # Only suffixes of files are removed: a dot can be part of a name, as in `resnet18.a1_in1k`.
    stems = [SUFFIX.sub("", part) for part in parts]
    telling = [stem for stem in stems if not GENERIC_NAMES.fullmatch(stem.lower())]
    name = re.sub(r"[^A-Za-z0-9_\-]+", "_", (telling or stems or ["teacher"])[-1]).strip("_")
    return name[:MAX_NAME_LENGTH] or "teacher"
