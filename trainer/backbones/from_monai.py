"""Backbones of MONAI by name: `monai:densenet121`.

Importing MONAI takes seconds, so that happens when one is built, and the names are a table of ours. A family says which
modules run one after the other up to each level; whatever else a network has lies behind its last level, or is a
classifier, and is removed. So parameters keep MONAI's names, and none is idle. Three things differ from MONAI:

* ResNets are built as torchvision's are (stride 2 in the stem, no bias in projections), whose files fit them.
* A level of a DenseNet is what the network reads next, normalised and rectified, as torchvision's classifier reads
  the last one; MONAI has no taps there, timm takes the raw concatenation.
* EfficientNets drop no blocks at random: MONAI draws that from torch's random stream. Their padding is MONAI's, that of
  the image size in the paper.

Sources: ResNet (He et al. 2016, https://arxiv.org/abs/1512.03385), DenseNet (Huang et al. 2017,
https://arxiv.org/abs/1608.06993), SENet (Hu et al. 2018, https://arxiv.org/abs/1709.01507), EfficientNet (Tan and Le
2019, https://arxiv.org/abs/1905.11946), MONAI 1.6 (https://github.com/Project-MONAI/MONAI).

Legend: B batch, C channels, H and W pixels, C_i and s_i channels and stride of level i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import nn

from data_shards.errors import UserError, nearest_of
from trainer.backbones.backbone import Backbone
from trainer.backbones.foreign import PROBE_PX, Dialect, draw, probe, replace_norms
from trainer.backbones.norm import NormFactory, norm_factory


def by_name(model: str) -> Callable[..., nn.Module]:
    """Return the constructor of MONAI's network of that name; the other arguments are those of `MonaiBackbone`.

    Raises:
        UserError: there is none, or none that is supported.
    """
    if model not in MODELS:
        raise UserError(
            f"no network '{model:.80}' of MONAI{nearest_of(model, list(MODELS))}; there are {', '.join(MODELS)}"
        )
    return partial(MonaiBackbone, model)


class MonaiBackbone(Backbone):
    """(B, C, H, W) -> `levels` levels (B, C_i, H / s_i, W / s_i), all there are if not given.

    Raises:
        UserError: unknown name or norm, or a number of levels that the network does not have.
    """

    def __init__(
        self,
        model: str,
        levels: int | None = None,
        norm: Literal["frozen", "batch", "group", "sync"] = "frozen",
        in_channels: int = 3,
        seed: int = 0,
        sync_norm: NormFactory | None = None,
    ) -> None:
        super().__init__()
        family = MODELS[model]
        levels = len(family.levels) if levels is None else levels
        if not 1 <= levels <= len(family.levels):
            raise UserError(f"{model} has 1 to {len(family.levels)} levels; got {levels}.")
        self.runs = family.levels[:levels]
        self.parts = tuple(part for run in self.runs for part in run)
        self.dialects = family.dialects
        self.in_channels, self.make_norm = in_channels, norm_factory(norm, sync_norm)
        with torch.device("meta"):  # nothing is drawn, and what is cut off never takes memory
            net = family.make(model, in_channels)
        keep_only(net, self.parts)
        for name, child in net.named_children():
            self.add_module(name, child)
        self.channels = (0,) * levels  # until the pass below tells
        shapes, idle = probe(self, in_channels)
        assert not idle, f"{model} has idle parameters: {idle}"
        self.channels = tuple(shape[0] for shape in shapes)
        self.strides = tuple(PROBE_PX // shape[1] for shape in shapes)
        self.smallest_px = self.strides[-1]
        replace_norms(self, self.make_norm)
        draw(self, seed)

    def level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        for name in self.runs[i]:
            x = self.get_submodule(name)(x)
        return x


def keep_only(module: nn.Module, names: Sequence[str]) -> None:
    """Remove every module that is not named, nor part of one that is, nor holds one."""
    for name, _ in list(module.named_children()):
        inside = [rest for first, _, rest in (word.partition(".") for word in names) if first == name]
        if not inside:
            delattr(module, name)
        elif "" not in inside:
            keep_only(module.get_submodule(name), inside)


class Family(NamedTuple):
    """How networks are made (name, in_channels), the modules up to each level, and how others name their parameters."""

    make: Callable[[str, int], nn.Module]
    levels: tuple[tuple[str, ...], ...]
    dialects: tuple[Dialect, ...] = ()


def _resnet(model: str, in_channels: int) -> nn.Module:
    from monai.networks import nets

    as_torchvision = {"conv1_t_stride": 2, "shortcut_type": "B", "bias_downsample": False}
    return getattr(nets, model)(spatial_dims=2, n_input_channels=in_channels, **as_torchvision)  # type: ignore[no-any-return]


def _densenet(model: str, in_channels: int) -> nn.Module:
    from monai.networks import nets

    return getattr(nets, model)(spatial_dims=2, in_channels=in_channels, out_channels=1)  # type: ignore[no-any-return]


def _senet(model: str, in_channels: int) -> nn.Module:
    from monai.networks import nets

    return getattr(nets, model)(spatial_dims=2, in_channels=in_channels)  # type: ignore[no-any-return]


def _efficientnet(model: str, in_channels: int) -> nn.Module:
    from monai.networks.nets.efficientnet import EfficientNetBN, MBConvBlock

    net = EfficientNetBN(model, pretrained=False, spatial_dims=2, in_channels=in_channels)
    for layer in net.modules():
        if isinstance(layer, (EfficientNetBN, MBConvBlock)):
            layer._swish = nn.SiLU()  # the same function, without MONAI's own backward
        if isinstance(layer, MBConvBlock):
            layer.drop_connect_rate = 0.0
    return net


RESNET = Family(
    _resnet,
    (("conv1", "bn1", "act", "maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",)),
)


def _dense_level(i: int) -> tuple[str, ...]:
    """Return what leads to level i of a DenseNet (1 to 4)."""
    stem = ("features.conv0", "features.norm0", "features.relu0", "features.pool0")
    first = stem if i == 1 else (f"features.transition{i - 1}.conv", f"features.transition{i - 1}.pool")
    read = f"features.transition{i}"
    last = ("features.norm5", "class_layers.relu") if i == 4 else (f"{read}.norm", f"{read}.relu")
    return (*first, f"features.denseblock{i}", *last)


DENSENET = Family(
    _densenet,
    tuple(_dense_level(i) for i in (1, 2, 3, 4)),
    # torchvision's names, and those of its published files, which are older than its code.
    (((r"\.layers\.", "."),), ((r"\.layers\.(norm|conv)", r".\1."),)),
)
SENET = Family(
    _senet,
    (("layer0", "layer1"), ("layer2",), ("layer3",), ("layer4",)),
    # Cadene's pretrained-models, which timm has as legacy_seresnet50 and so on.
    (
        (
            (r"\.conv(\d)\.conv\.", r".conv\1."),
            (r"\.conv(\d)\.adn\.N\.", r".bn\1."),
            (r"\.se_layer\.fc\.0\.", ".se_module.fc1."),
            (r"\.se_layer\.fc\.2\.", ".se_module.fc2."),
            (r"\.project\.conv\.", ".downsample.0."),
            (r"\.project\.adn\.N\.", ".downsample.1."),
        ),
    ),
)
EFFICIENTNET = Family(
    _efficientnet,
    (
        ("_conv_stem_padding", "_conv_stem", "_bn0", "_swish", "_blocks.0"),
        ("_blocks.1",),
        ("_blocks.2",),
        ("_blocks.3", "_blocks.4"),
        ("_blocks.5", "_blocks.6"),
    ),
    # EfficientNet-PyTorch, the files that MONAI reads: blocks are numbered through.
    (((r"^_blocks\.\d+\.(\d+)\.", r"_blocks.\1."),),),
)
MODELS: dict[str, Family] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), RESNET),
    **dict.fromkeys(("densenet121", "densenet169", "densenet201"), DENSENET),
    **dict.fromkeys(("seresnet50", "seresnet101", "seresnext50", "seresnext101"), SENET),
    **dict.fromkeys((f"efficientnet-b{i}" for i in range(5)), EFFICIENTNET),
}
