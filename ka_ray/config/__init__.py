"""What a run is: typed, frozen, checked before anything starts. No torch, no Ray."""

from ka_ray.config.load import differing_keys, flatten, load_images
from ka_ray.config.schema import (
    CodesConfig,
    Config,
    EvaluationConfig,
    ExtractConfig,
    JointConfig,
    LayersConfig,
    RayConfig,
    StudentConfig,
    TeachConfig,
    TrackingConfig,
    TrainingConfig,
)
from ka_ray.config.sources import DigitsImages, FolderImages, ImagesConfig, ParquetImages
from ka_ray.config.teachers import Augmentation, Preprocessing, TeacherConfig, TeachingConfig

__all__ = [
    "Augmentation",
    "CodesConfig",
    "Config",
    "DigitsImages",
    "EvaluationConfig",
    "ExtractConfig",
    "FolderImages",
    "ImagesConfig",
    "JointConfig",
    "LayersConfig",
    "ParquetImages",
    "Preprocessing",
    "RayConfig",
    "StudentConfig",
    "TeachConfig",
    "TeacherConfig",
    "TeachingConfig",
    "TrackingConfig",
    "TrainingConfig",
    "differing_keys",
    "flatten",
    "load_images",
]
