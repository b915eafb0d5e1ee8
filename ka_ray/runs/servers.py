"""Check that the servers of a run answer, before work starts that would be lost without them."""

from ka_ray.config import Config, TeachConfig
from ka_ray.distributed.cluster import check_cluster
from ka_ray.tracking import check_tracker


def check_servers(config: Config | TeachConfig) -> None:
    """Check that the Ray cluster and the tracking server answer; takes at most about 20 seconds.

    Both are opened only when the run starts, which may be long after its planning has begun: networks are
    downloaded and images are listed first.

    Args:
        config: The config of the command.

    Raises:
        InputError: One does not answer; the message names its address and what to do.
    """
    check_tracker(config.tracking, config.output_dir)
    check_cluster(config.ray)
