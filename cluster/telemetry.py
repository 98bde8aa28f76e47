"""Readings of the GPUs through NVML; silent (an empty list) on a machine without one."""

from __future__ import annotations

from typing import Any


def num_visible_gpus() -> int:
    """Return how many NVIDIA GPUs the driver knows; 0 without a driver."""
    return len(gpu_readings())


def gpu_readings() -> list[dict[str, Any]]:
    """Return a dictionary per GPU: index, name, utilization_percent, memory_used_bytes, memory_total_bytes,
    temperature_c, power_w. A value that a device does not report is None."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_reading(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _reading(nvml: Any, index: int) -> dict[str, Any]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(query: Any, *arguments: Any) -> Any:
        try:
            return query(device, *arguments)
        except nvml.NVMLError:  # MIG slices and some boards do not report everything
            return None

    use = ask(nvml.nvmlDeviceGetUtilizationRates)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    power = ask(nvml.nvmlDeviceGetPowerUsage)
    return {
        "index": index,
        "name": ask(nvml.nvmlDeviceGetName),
        "utilization_percent": None if use is None else int(use.gpu),
        "memory_used_bytes": None if memory is None else int(memory.used),
        "memory_total_bytes": None if memory is None else int(memory.total),
        "temperature_c": ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        "power_w": None if power is None else power / 1000.0,
    }
