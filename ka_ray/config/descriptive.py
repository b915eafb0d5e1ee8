"""The section `scores.descriptive`: a network that is nobody's teacher, and helps gates to tell owners."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from ka_ray.config.base import ExistingPath, ModelSource, Section
from ka_ray.config.preprocessing import Preprocessing
from ka_ray.config.shorthands import accept_source
from ka_ray.config.teachers import NETWORK_NAMES

DESCRIPTIVE = "descriptive"
"""Name under which a gate knows the network's features, beside those of the teachers by their names."""


class DescriptiveConfig(Section):
    """A trained network, `from` a model that says what it is, or described key by key; as for a teacher.

    Its classes, if it has any, mean nothing here.
    """

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True, json_schema_extra=accept_source)

    from_: ModelSource | None = Field(
        None, alias="from", description="As of a teacher; the other keys override what is found."
    )
    network: str = Field("", description=f"{NETWORK_NAMES}; by default found in `from`.")
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Keyword arguments of the network; num_classes is found in the weights if left out.",
    )
    checkpoint: ExistingPath | None = Field(
        None,
        description=".safetensors, or .pt / .pth with a state dict; null: `from` or `weights` says it, or a "
        "factory loads trained weights by itself.",
    )
    weights: str | None = Field(
        None, description="For a torchvision model, the name of published weights, as of a teacher."
    )
    preprocessing: Preprocessing = Field(
        Preprocessing(), description="The images that the network was trained with."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_source(cls, given: Any) -> Any:
        """Accept a source instead of a mapping."""
        return {"from": str(given)} if isinstance(given, str | Path) else given

    @model_validator(mode="after")
    def _is_described(self) -> "DescriptiveConfig":
        if self.from_ is None and not self.network:
            raise ValueError("network: is missing; give it, or `from`")
        factory = ":" in self.network
        if not factory and self.from_ is None and self.checkpoint is None and self.weights is None:
            raise ValueError(
                f"checkpoint: is missing: {self.network} alone has random weights, which describe nothing"
            )
        return self
