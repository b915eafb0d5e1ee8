"""Ask NVIDIA's driver for its version and for the use of GPUs, without a CUDA context and without a package.

A CUDA context would take hundreds of MB of each GPU, and torch says nothing if the driver does not suit it.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
"""NVIDIA's management library (NVML), which is part of the driver."""

TEXT_BYTES = 96
"""Size of the buffers for names and versions; NVML's longest text."""


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: Its product name.
        total: Its memory, in bytes.
        used: Memory in use by all processes, in bytes.
        busy: Share of the last second in which it computed, in [0, 1].
    """

    name: str
    total: int
    used: int
    busy: float


class Driver:
    """NVIDIA's driver.

    Args:
        library: NVML as a C library; its functions return 0 if they succeed.

    Raises:
        OSError: The driver cannot be used, for example because no GPU is passed into a container.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._call("nvmlInit_v2")

    @property
    def version(self) -> str:
        """The driver's version, such as ``535.104.05``."""
        return self._text("nvmlSystemGetDriverVersion")

    @property
    def cuda(self) -> tuple[int, int]:
        """The newest version of CUDA that the driver supports: major, minor."""
        number = ctypes.c_int()
        self._call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(number))
        return number.value // 1000, number.value % 1000 // 10

    def gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs of this machine, and how they are used now."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return tuple(self._gpu(index) for index in range(count.value))

    def _gpu(self, index: int) -> Gpu:
        handle, busy, memory = ctypes.c_void_p(), _Utilization(), _Memory()
        self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        try:
            self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(busy))
        except OSError:  # a part of a GPU (MIG) does not measure it
            busy.gpu = 0
        return Gpu(self._text("nvmlDeviceGetName", handle), memory.total, memory.used, busy.gpu / 100)

    def _text(self, function: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        self._call(function, *arguments, buffer, TEXT_BYTES)
        return buffer.value.decode(errors="replace")

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise OSError(f"NVIDIA's driver: {function} returned {code}")


@cache
def find_driver() -> Driver | None:
    """Return NVIDIA's driver; None if this machine has none, or none that works."""
    try:
        return Driver(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError):  # no library, one that does not work, or one without a function
        return None
