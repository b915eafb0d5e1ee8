"""The sections of a report on the size and the speed of student and teachers."""

from ka_ray.reports.choices import ReportSection

SPEED_BATCH = 32
"""Largest number of images in a batch for which the throughput is measured."""


class NetworkSpeed(ReportSection):
    """How fast a network scores images, from their pixels to its scores, on the CPU of the command."""

    latency_ms: float
    """Milliseconds for one image alone."""
    images_per_s: float
    """Images per second in batches of 32, or of fewer if they would take longer than three seconds."""


class NetworkSize(ReportSection):
    """The size of a network and the cost of one forward pass."""

    parameters: int
    """Number of parameters."""
    macs: int
    """Multiply-accumulates of one image, in convolutions and matrix products."""
    bytes: int
    """Memory of the parameters and buffers, in bytes."""
    speed: NetworkSpeed | None = None
    """How fast it is; None if this was not measured."""


class NetworkSizes(ReportSection):
    """The size of the student next to that of its teachers."""

    student: NetworkSize
    """Size of the student."""
    teachers: NetworkSize
    """Sum over all teachers, which score an image one after the other."""
    per_teacher: dict[str, NetworkSize]
    """Name of a teacher -> its size."""
    threads: int | None = None
    """Number of CPU threads with which the speeds were measured; None if they were not."""


def add_up(sizes: list[NetworkSize]) -> NetworkSize:
    """Return the size and the speed of several networks that score an image one after the other.

    Args:
        sizes: The networks, at least one.

    Example:
        >>> speed = NetworkSpeed(latency_ms=3, images_per_s=600)
        >>> add_up([NetworkSize(parameters=1, macs=2, bytes=4, speed=speed)] * 2).speed
        NetworkSpeed(latency_ms=6.0, images_per_s=300.0)
    """
    speeds = [size.speed for size in sizes if size.speed is not None]
    speed = None
    if len(speeds) == len(sizes):
        speed = NetworkSpeed(
            latency_ms=sum(one.latency_ms for one in speeds),
            images_per_s=1 / sum(1 / one.images_per_s for one in speeds),
        )
    return NetworkSize(
        parameters=sum(size.parameters for size in sizes),
        macs=sum(size.macs for size in sizes),
        bytes=sum(size.bytes for size in sizes),
        speed=speed,
    )
