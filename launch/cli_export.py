"""`subspace export`: a trained network in a form that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def export(
    run: Positional[Path],
    /,
    *,
    kind: Annotated[Literal["huggingface", "safetensors", "onnx", "torch"], arg(name="format")] = "huggingface",
    out: Path | None = None,
) -> int:
    """Write the best network of a run to RUN/exported.

    Args:
        run: the run folder.
        kind: huggingface, a folder of model.safetensors, config.json and model card; safetensors, the backbone alone
            by the names of torchvision, timm or MONAI; onnx, a graph; torch, a program of torch.export.
        out: another folder.
    """
    from launch.trained import config_of

    config_of(run)  # pins what torch reads when it is imported
    from launch.exported import export_run

    for path in export_run(run, kind, out):
        print(path)
    return 0
