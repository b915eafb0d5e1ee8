"""The training stages of a run: its start or codes and layers, then joint learning, in one group of workers.

Each stage writes ``stages/<stage>.safetensors`` and, at the end, ``stages/<stage>.json``. A stage whose JSON
file exists is finished and not repeated. This module does not import Ray. Called in one process, a stage is
an ordinary training loop; called in each worker of a process group, it is data-parallel.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ka_ray.config import Config
from ka_ray.numerics.ranks import on_any_rank, rank, wait_for_all
from ka_ray.reports.sections import StageName
from ka_ray.stages.codes import learn_codes
from ka_ray.stages.inputs import StageInputs, save_stage, stage_summary_path
from ka_ray.stages.joint import learn_jointly
from ka_ray.stages.layers import learn_layers
from ka_ray.stages.start import make_start


def run_stages(inputs: StageInputs) -> None:
    """Run each stage that is not finished yet. Rank 0 writes the results."""
    for stage in list_stages(inputs.config):
        # All ranks must take the same branch, even if a shared file system shows the file to some of them
        # later.
        if on_any_rank(stage_summary_path(inputs.folder, stage).exists()):
            continue
        began = time.perf_counter()
        torch.manual_seed(inputs.config.seed)
        module, summary = STAGES[stage](inputs)
        if rank() == 0:
            summary["seconds"] = time.perf_counter() - began
            save_stage(inputs.folder, stage, module, summary)
        # The next stage reads the files of this one on each rank.
        wait_for_all()


STAGES: dict[StageName, Callable[[StageInputs], tuple[nn.Module, dict[str, Any]]]] = {
    "start": make_start,
    "codes": learn_codes,
    "layers": learn_layers,
    "joint": learn_jointly,
}
"""Name of each stage -> function that runs it and returns its trained module and its summary."""


def list_stages(config: Config) -> tuple[StageName, ...]:
    """Return the names of a run's stages in order.

    A baseline learns jointly at once, and so does, by default, a student that starts from weights.
    """
    start: tuple[StageName, ...] = () if config.student.start == "random" else ("start",)
    layers: tuple[StageName, ...] = ("codes", "layers") if config.learns_layers else ()
    return (*start, *layers, "joint")
