"""GPU readings: silent without a GPU, complete with one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster import telemetry


def test_no_gpu_is_an_empty_list() -> None:
    assert telemetry.num_visible_gpus() == len(telemetry.gpu_readings())


def test_readings_of_a_board_that_does_not_tell_its_power(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(device: object) -> None:
        raise NVMLError

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda device: "a GPU",
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=42),
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=10, total=20),
        nvmlDeviceGetPowerUsage=refuse,
        nvmlDeviceGetTemperature=lambda device, kind: 55,
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    assert telemetry.gpu_readings() == [
        {
            "index": 0,
            "name": "a GPU",
            "utilization_percent": 42,
            "memory_used_bytes": 10,
            "memory_total_bytes": 20,
            "temperature_c": 55,
            "power_w": None,
        }
    ]
