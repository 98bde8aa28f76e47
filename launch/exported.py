"""A run's network as files for elsewhere: what is known of it, `subspace export`, and the folder read back.

An exported folder is all that `launch.embedder` needs; neither checkpoint nor shards have to be there. Nothing in it
leads to where it was made: paths and addresses stay at home.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field

from data_shards.errors import UserError, intact
from data_shards.files import open_plain
from data_shards.manifest import Manifest
from data_shards.preprocessing import Preprocessing
from launch import build, networks
from launch.config import RunConfig, checked
from launch.mistakes import validated
from launch.sections import Pixels, Section
from launch.seen import preprocessing, shards_of
from launch.trained import Trained, alone, config_of, load
from trainer import portable
from trainer.export import CONFIG, FORMAT, WEIGHTS, export
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition
from trainer.tensor_file import read_tensors

Kind = Literal["huggingface", "safetensors", "onnx", "torch"]
MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True)
class Ready:
    """A network in evaluation mode, how images come to it, and how its vectors are cut."""

    config: RunConfig
    network: EmbeddingModel
    partition: SubspacePartition
    preprocessing: Preprocessing


class _Steps(Section):
    """What of `Preprocessing.described` is not in the configuration."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    channels: Literal[1, 3]
    fit: Literal["crop", "pad", "stretch"]
    fit_size: Pixels | None


class _Described(Section):
    """What is read of config.json; the rest is for people."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    format: Literal[1]
    widths: tuple[int, ...] = Field(min_length=1)
    preprocessing: _Steps
    run_config: dict[str, Any]


# -- writing


def export_run(run: Path, kind: Kind, out: Path | None = None) -> list[Path]:
    """Write a finished or unfinished run's best network to `out`, RUN/exported when not given; return the files.

    Raises:
        UserError: no run, checkpoint or shards; a network that has no vectors, or cannot be traced; a missing library.
    """
    config = config_of(run)
    if kind in ("onnx", "torch"):
        check_vectors(config)
    if kind == "onnx":
        portable.check_onnx()
    manifest = shards_of(config).manifest
    folder = out or run / "exported"
    with alone(config):
        found = load(run, config)
        known = facts(config, manifest, found.epoch)
        folder.mkdir(parents=True, exist_ok=True)
        return _WRITERS[kind](folder, found, known)


def facts(config: RunConfig, data: Manifest, epoch: int) -> dict[str, Any]:
    """Return what config.json and the model card say of a run."""
    transform = build.transform(config)
    return {
        "name": config.name,
        "backbone": config.model.backbone.name,
        "weights": Path(config.model.weights).name,
        "data": f"{data.name} ({data.source.partition(':')[0]})",
        "channels": config.data.channels,
        "size": config.data.image_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "monitor": config.growth.monitor,
        "epoch": epoch,
        "classes": list(data.classes),
        "counts": {split: data.counts[split] for split in data.splits},
        "notes": list(data.warnings),
        "preprocessing": preprocessing(data, transform).described(),
        "run_config": _without_places(config),
    }


def _without_places(config: RunConfig) -> dict[str, Any]:
    """Return a configuration without what is true on this machine only, or names its folders."""
    tree = config.model_dump(mode="json", exclude={"ray", "launch"})
    tree["data"].update(shards=Path(config.data.shards).name, build=None, build_options={})
    tree["model"]["weights"] = Path(config.model.weights).name
    local = tree["objective"]["local"]
    if local is not None and local["shape"] is not None:
        local["shape"]["priors"] = Path(local["shape"]["priors"]).name
    return tree


def _folder(folder: Path, found: Trained, known: dict[str, Any]) -> list[Path]:
    return export(folder, found.network, found.partition, known, _evaluations(found.run))


def _backbone(folder: Path, found: Trained, known: dict[str, Any]) -> list[Path]:
    path = folder / "backbone.safetensors"
    portable.write_backbone(path, found.network, {"backbone": known["backbone"], **_short(known)})
    return [path]


def _onnx(folder: Path, found: Trained, known: dict[str, Any]) -> list[Path]:
    path = folder / "model.onnx"
    portable.write_onnx(path, _program(found, known), {**_short(known), "widths": list(found.partition.widths)})
    return [path]


def _torch(folder: Path, found: Trained, known: dict[str, Any]) -> list[Path]:
    path = folder / "model.pt2"
    portable.write_program(path, _program(found, known), {**_short(known), "widths": list(found.partition.widths)})
    return [path]


def _program(found: Trained, known: dict[str, Any]) -> Any:
    return portable.program(found.network, found.partition, known["channels"], known["size"])


def _short(known: dict[str, Any]) -> dict[str, Any]:
    return {name: known[name] for name in ("name", "preprocessing")}


def _evaluations(run: Path) -> dict[str, Any]:
    """Return the final scores of a run, as far as it has come."""
    found = {}
    for split in ("validation", "test"):
        path = run / "evaluation" / f"{split}.json"
        if path.exists():
            with intact(str(path)):
                found[split] = json.loads(path.read_text())
    return found


_WRITERS: dict[Kind, Callable[[Path, Trained, dict[str, Any]], list[Path]]] = {
    "huggingface": _folder,
    "safetensors": _backbone,
    "onnx": _onnx,
    "torch": _torch,
}


def check_vectors(config: RunConfig) -> None:
    """Raise UserError for a network whose output is no vector of an image."""
    if config.evaluate.by != "retrieval":
        raise UserError(
            f"{config.name} was trained for {config.evaluate.by}, not for vectors of images: there is no embedding to"
            " give; its weights are, with --format huggingface or safetensors"
        )


# -- reading


def is_exported(folder: Path) -> bool:
    """Return whether a folder is what `export_run` writes, and no run."""
    return (folder / CONFIG).exists() and not (folder / "config.yaml").exists()


def read(folder: Path, device: torch.device | str) -> Ready:
    """Return the network of an exported folder; nothing in it is executed.

    Raises:
        UserError: it was not written by this version, or holds another network than it says.
        DataIntegrityError: a file is damaged.
    """
    path = folder / CONFIG
    try:
        with open_plain(path, MAX_CONFIG_BYTES) as stream, intact(str(path)):
            tree = json.loads(stream.read())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise UserError(f"{path} has no format {FORMAT}: export the run again, with 'subspace export RUN'")
    named = {name: tree[name] for name in _Described.model_fields if name in tree}
    known = validated(_Described, named, str(path))
    config = networks.from_random(checked(known.run_config, f"{path}: run_config"))
    partition = SubspacePartition(known.widths)
    network = networks.model(config, device)
    try:
        network.load_state_dict(read_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise UserError(
            f"{folder / WEIGHTS} is not the network of {path}: {str(error).splitlines()[-1].strip()}"
        ) from None
    if partition.num_dims != networks.num_dims(config):
        raise UserError(f"{path}: widths {list(known.widths)} are not those of {networks.num_dims(config)} dimensions")
    steps = known.preprocessing
    own = Preprocessing(steps.channels, steps.fit_size, steps.fit, build.transform(config))
    return Ready(config, network.eval(), partition, own)
