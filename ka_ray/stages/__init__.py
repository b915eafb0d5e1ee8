"""The stages that train: codes, layers, joint, in this order in one group of workers.

Each leaves ``stages/<stage>.safetensors`` and, written last, ``stages/<stage>.json``; a stage that stands is
not repeated. This module knows no Ray: called alone it is the plain loop, called by every worker of a
process group it is data-parallel.
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


def run_stages(inputs: StageInputs) -> None:
    """Run every stage that does not stand yet; rank 0 writes what each leaves."""
    for stage in list_stages(inputs.config):
        if on_any_rank(stage_summary_path(inputs.folder, stage).exists()):
            continue
        began = time.perf_counter()
        torch.manual_seed(inputs.config.seed)
        module, summary = STAGES[stage](inputs)
        if rank() == 0:
            summary["seconds"] = time.perf_counter() - began
            save_stage(inputs.folder, stage, module, summary)
        wait_for_all()


STAGES: dict[StageName, Callable[[StageInputs], tuple[nn.Module, dict[str, Any]]]] = {
    "codes": learn_codes,
    "layers": learn_layers,
    "joint": learn_jointly,
}


def list_stages(config: Config) -> tuple[StageName, ...]:
    """Name the stages of a run, in order: a baseline learns its student in one."""
    return tuple(STAGES) if config.baseline is None else ("joint",)
