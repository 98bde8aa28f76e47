"""Images per CPU second of a training step for the small networks, one thread: forward, loss, backward, Adam.

    python benchmarks/training_step.py

Prints one JSON line per setting. CPU seconds, so that other load on the machine matters less.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import json
import time

import torch

from trainer.backbones.resnet import ResNet
from trainer.backbones.small import SmallResNet
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.losses.margin import margin_loss
from trainer.miners import nearest_beyond_cutoff
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition

BATCH, STEPS = 32, 8
SETTINGS = {
    "omniglot_cpu: 28 px, small 32-64-128, stem 2": (
        28,
        1,
        lambda: SmallResNet((32, 64, 128), in_channels=1, stem_stride=2),
        (32, 16),
    ),
    "ham10000_cpu: 64 px, ResNet-18 to stage 3, group norm": (64, 3, lambda: ResNet(18, 3, norm="group"), (128, 32)),
}


def images_per_cpu_s(size: int, channels: int, model: EmbeddingModel, bf16: bool) -> float:
    """Return the speed of training steps after a warm-up."""
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, foreach=True)
    images = torch.randn(BATCH, channels, size, size).to(memory_format=torch.channels_last)
    labels, partition = torch.arange(BATCH) // 8, SubspacePartition((128,))
    began = 0.0
    for step in range(STEPS + 2):
        if step == 2:
            began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            vectors = model(images).vectors
        unit = partition.normalize(vectors.float())
        loss = margin_loss(unit, labels, nearest_beyond_cutoff(unit.detach(), labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return STEPS * BATCH / (time.process_time() - began)


def main() -> None:
    torch.set_num_threads(1)
    for name, (size, channels, backbone, hidden) in SETTINGS.items():
        speeds = {}
        for precision in ("fp32", "bf16"):
            net = backbone()
            model = EmbeddingModel(net, LinearEmbedding(net.channels[-1], 128), gate.convolutions(net, hidden=hidden))
            speeds[precision] = round(images_per_cpu_s(size, channels, model, precision == "bf16"))
        print(json.dumps({"setting": name, "images_per_cpu_s": speeds}), flush=True)


if __name__ == "__main__":
    main()
