"""The config of a run, as frozen pydantic models that are validated before anything starts.

This package imports neither torch nor Ray.
"""

from ka_ray.config.baselines import BaselinesConfig, ScratchConfig
from ka_ray.config.cluster import RayConfig
from ka_ray.config.decoding import Decoding
from ka_ray.config.descriptive import DESCRIPTIVE, DescriptiveConfig
from ka_ray.config.flat_keys import differing_keys, flatten
from ka_ray.config.job_paths import JOB_FOLDERS, ClusterContext, is_absolute, without_job_folder
from ka_ray.config.joint import JointConfig
from ka_ray.config.load import load_images, load_tree, read_tree, with_overrides
from ka_ray.config.mixture import ImagesConfig, MixedImages, PlainImages
from ka_ray.config.network_training import NetworkTrainingConfig
from ka_ray.config.placement import PlacementConfig, Resources, ResourcesConfig
from ka_ray.config.preprocessing import Preprocessing
from ka_ray.config.schema import Config, EvaluationConfig, TeachConfig
from ka_ray.config.scores import ScoresConfig
from ka_ray.config.sources import (
    NOBODY,
    DatasetsImages,
    DigitsImages,
    FolderImages,
    ListImages,
    ParquetImages,
    TorchvisionImages,
    WebDatasetImages,
)
from ka_ray.config.stages import (
    CodesConfig,
    EnergyWidths,
    ExtractConfig,
    LayersConfig,
    LikeTeacher,
    TrainingConfig,
)
from ka_ray.config.student import STUDENT, StartConfig, StudentConfig
from ka_ray.config.teachers import Augmentation, TeacherConfig, TeachingConfig
from ka_ray.config.tracking import TrackingConfig
from ka_ray.config.tune import TuneConfig

__all__ = [
    "DESCRIPTIVE",
    "JOB_FOLDERS",
    "NOBODY",
    "STUDENT",
    "Augmentation",
    "BaselinesConfig",
    "ClusterContext",
    "CodesConfig",
    "Config",
    "DatasetsImages",
    "Decoding",
    "DescriptiveConfig",
    "DigitsImages",
    "EnergyWidths",
    "EvaluationConfig",
    "ExtractConfig",
    "FolderImages",
    "ImagesConfig",
    "JointConfig",
    "LayersConfig",
    "LikeTeacher",
    "ListImages",
    "MixedImages",
    "NetworkTrainingConfig",
    "ParquetImages",
    "PlacementConfig",
    "PlainImages",
    "Preprocessing",
    "RayConfig",
    "Resources",
    "ResourcesConfig",
    "ScoresConfig",
    "ScratchConfig",
    "StartConfig",
    "StudentConfig",
    "TeachConfig",
    "TeacherConfig",
    "TeachingConfig",
    "TorchvisionImages",
    "TrackingConfig",
    "TrainingConfig",
    "TuneConfig",
    "WebDatasetImages",
    "differing_keys",
    "flatten",
    "is_absolute",
    "load_images",
    "load_tree",
    "read_tree",
    "with_overrides",
    "without_job_folder",
]
