"""Train on a Ray of its own whose node is announced to be taken away, and print what was saved at that time.

Run by test_spot_nodes.py in a process of its own: a node that drains takes no further work.
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import ray
import torch
from torch import nn

from ka_ray.config import RayConfig, Resources
from ka_ray.distributed.cluster import connect
from ka_ray.distributed.train import WorkerGroup, train_in_workers
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.training import Batches, FitSettings, fit

BATCH, STEPS, SECONDS_PER_STEP = 4, 150, 0.2


def announce_that_the_node_goes(folder: Path) -> None:
    """Do what an autoscaler does when the provider of a spot node gives notice, once training has begun."""
    from ray.core.generated import autoscaler_pb2

    while not (folder / "begun").exists():
        time.sleep(0.2)
    (node,) = ray.nodes()
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 3600) * 1000)
    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    print("accepted", client.drain_node(node["NodeID"], reason, "spot", deadline_ms), flush=True)


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    create_shard_folder(folder / "store")
    rows = BATCH * STEPS
    columns = {"image_id": np.arange(rows), "x": rng.normal(size=(rows, 3)).astype(np.float32)}
    write_shard(folder / "store", columns)
    mark_folder_finished(folder / "store", {"rows": rows})

    def work(device, report):
        class Slow(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 1)

            def forward(self, batch):
                time.sleep(SECONDS_PER_STEP)
                (folder / "begun").touch()
                return {"size": self.layer(batch["x"]).square().mean()}

        learner = Slow()
        batches = Batches(Store(folder / "store"), ["x"], BATCH, seed=0)
        settings = FitSettings("joint", 1, 0.1, checkpoint=folder / "joint.epoch")
        fit(learner, batches, settings, report)

    with connect(RayConfig(num_cpus=2)):
        threading.Thread(target=announce_that_the_node_goes, args=(folder,), daemon=True).start()
        group = WorkerGroup(RayConfig(workers=1), Resources(cpu=0.5), folder, "run")
        train_in_workers(work, group, lambda progress: None, print)
    # There is only one epoch, so without the notice nothing would have been saved.
    state = torch.load(folder / "joint.epoch", weights_only=True)
    print("saved", state["middle"]["step"], "of", STEPS, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
