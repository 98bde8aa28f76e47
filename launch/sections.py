"""The parts of a configuration, each key with its type, bounds, default and meaning; launch/config.py joins them.

Importing this file imports neither torch nor Ray, so a typing mistake is answered in well under a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Pixels = Annotated[int, Field(gt=0, le=16_384)]
Count = Annotated[int, Field(gt=0, le=1 << 20)]
Processes = Annotated[int, Field(gt=0, le=1 << 14)]
Steps = Annotated[int, Field(gt=0, le=1 << 40)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]


class Section(BaseModel):
    """A part of the configuration: frozen, every key known, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Component(BaseModel):
    """One entry of a table (launch/networks.py and its like) and the arguments of its constructor, checked there."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class MotionSection(Section):
    """Small motions, colours and erasing."""

    rotate_degrees: float = Field(0.0, description="largest angle, either way")
    translate: float = Field(0.0, description="largest shift, as a fraction of the size")
    scale: tuple[float, float] = Field((1.0, 1.0), description="least and largest zoom")
    shear: float = Field(0.0, description="largest angle, in degrees")
    brightness: float = Field(0.0, description="largest relative change")
    contrast: float = Field(0.0, description="largest relative change")
    saturation: float = Field(0.0, description="largest relative change")
    hue: float = Field(0.0, description="largest turn; 0.5 is all hues")
    gray: float = Field(0.0, description="probability that colour goes")
    erase: float = Field(0.0, description="probability that a rectangle becomes the mean colour")
    erase_area: tuple[float, float] = Field(
        (0.02, 0.2), description="least and largest area of that rectangle, of the image's"
    )


class AugmentSection(MotionSection):
    """Training views; evaluation always resizes and crops the centre."""

    crop_scale: tuple[float, float] = Field(
        (1.0, 1.0), description="least and largest area of a random crop; [1, 1] is no crop"
    )
    crop_ratio: tuple[float, float] = Field((0.75, 4 / 3), description="least and largest width / height of that crop")
    hflip: bool = Field(False, description="mirrored left to right, half of the time")
    vflip: bool = Field(False, description="mirrored top to bottom, half of the time")
    rotate90: bool = Field(False, description="turned by quarters, each equally often")
    padding: Literal["reflection", "border", "zeros"] = Field(
        "reflection", description="what lies outside of an image that was moved"
    )
    own: MotionSection | None = Field(None, description="of each view by itself, where an image has several")


class DataSection(Section):
    """Which shards, at what size, seen how."""

    shards: str = Field(description="the folder that `subspace shards build` made")
    build: str | None = Field(None, description="source to build the shards from when they do not exist, e.g. 'digits'")
    build_options: dict[str, Any] = Field(
        default_factory=dict, description="options of that source, as after `subspace shards build`"
    )
    fraction: float = Field(
        1.0, gt=0, le=1, description="of every class of the training split that is trained on; keyed by seed, nested"
    )
    image_size: Pixels = Field(224, description="side of the square that the network sees, in pixels")
    resize: Pixels | None = Field(
        None, description="evaluation: shorter side before the centre crop; 8/7 of image_size where images allow it"
    )
    channels: Literal[1, 3] = Field(3, description="1 gray, 3 colour")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406),
        description="of the intensities from 0 to 1, one per channel",
    )
    std: tuple[float, ...] = Field(
        (0.229, 0.224, 0.225),
        description="of the intensities from 0 to 1, one per channel",
    )
    augment: AugmentSection = Field(AugmentSection(), description="how training images are varied")
    num_workers: int = Field(
        0, ge=0, le=1 << 14, description="processes of a rank that load images; 0: the rank itself"
    )
    verify: bool = Field(True, description="compare the checksums of whole shard files at the start")
    max_corrupt: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="fraction of the training images that may be bad and replaced before the run stops",
    )


class ModelSection(Section):
    """Backbone -> gate -> head -> partitioned embedding."""

    backbone: Component = Field(
        Component(name="resnet50"), description="the network before the embedding, and its arguments"
    )
    gate: Component = Field(Component(name="convolutions"), description="the attention, and its arguments")
    head: Component = Field(
        Component(name="linear"), description="what makes vectors of the features, and its arguments"
    )
    num_dims: int = Field(128, gt=0, le=1 << 16, description="width of the embedding")
    num_subspaces: int = Field(1, gt=0, description="subspaces at the start")
    freeze_backbone: bool = Field(False, description="train gate and head only; the backbone stays as it starts")
    weights: str = Field("random", description="'random', or a .pth or .safetensors file that fits the backbone")
    weights_of: Literal["all", "backbone"] = Field("all", description="take gate and head too, where they fit, or not")


class EnsembleSection(Section):
    """Every learner trains on every image, and is punished for seeing an image as the others do."""

    divergence: float = Field(0.05, ge=0, le=1e6, description="weight of that punishment")
    margin: float = Field(0.2, ge=-1, le=1, description="cosine of two learners' vectors from which on it begins")
    pairs: Literal["same_image", "all"] = Field(
        "same_image", description="vectors of the same image, or of all images of the batch, are held apart"
    )


class ShapeSection(Section):
    """A critic that wants the first cluster to look like prior masks, which belong to no image."""

    priors: str = Field("vessels", description="'vessels' or 'discs', which are drawn, or a folder of masks")
    weight: float = Field(1.0, ge=0, le=1e6, description="of its judgement in the loss")
    lr_factor: float = Field(0.05, gt=0, le=1e6, description="its rate is optim.lr times this")
    slope: float = Field(0.2, ge=0, le=1, description="of its leaky ReLU; 1, which the released code has, is none")
    penalty: float = Field(0.0, ge=0, le=1e6, description="on its squared gradient at prior masks; the paper has none")
    agreement: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of the squared difference of two views' first clusters; the paper has none",
    )
    share: tuple[float, float] | None = Field(
        None, description="of drawn vessels in their mask, least and most; 0.03 and 0.11 when not given"
    )


class LocalSection(Section):
    """Local discrimination, without labels: patches are told apart, and regions, where the head has clusters."""

    temperature: float = Field(0.1, gt=0, le=1e6, description="of the softmax that tells patches apart")
    region_temperature: float = Field(0.2, gt=0, le=1e6, description="of the softmax that tells regions apart")
    region_weight: float = Field(10.0, ge=0, le=1e6, description="of the loss of regions, beside that of patches")
    entropy_weight: float = Field(0.1, ge=0, le=1e6, description="of the term that wants every pixel in one cluster")
    mix: tuple[float, float] = Field((0.2, 0.8), description="weight of the first image in a mixture of two")
    shape: ShapeSection | None = Field(
        None, description="segmentation guided by shapes: the first cluster is the target"
    )


class ObjectiveSection(Section):
    """What a step minimises: losses and miners of ours, or classes of pytorch-metric-learning, by name."""

    loss: Component = Field(Component(name="margin"), description="the loss, and its arguments")
    miner: Component = Field(
        Component(name="nearest_beyond_cutoff"),
        description="which pairs or triplets the loss sees, and its arguments; 'none' for losses that take all",
    )
    normalize: bool = Field(True, description="make the vectors of a subspace unit rows first")
    lr: float | None = Field(None, gt=0, le=1e6, description="of what a loss learns (proxies); optim.lr when not given")
    mask_penalty: float = Field(0.01, ge=0, le=1e6, description="on the cosine of two masks, with growth.rule doubling")
    ensemble: EnsembleSection | None = Field(None, description="no clusters: all learners see all images")
    masks: bool = Field(False, description="no vectors: the overlap of predicted masks, with model.head mask")
    local: LocalSection | None = Field(None, description="no labels: of patches and regions, with model.head dense")


class TrainSection(Section):
    """The loop: batches are global, so the number of ranks never changes them."""

    epochs: Count = Field(300, description="passes of `steps_per_epoch` steps")
    finetune_epoch: int | None = Field(
        None, ge=0, description="epoch from which all dimensions are trained on all data"
    )
    full_embedding_epoch: int | None = Field(
        None, ge=0, description="epoch from which all dimensions are trained, on batches of one cluster each still"
    )
    batch_size: int = Field(32, gt=1, le=1 << 20, description="images of a step over all ranks")
    samples_per_class: int = Field(
        8, ge=0, description="images of each class in a batch; 0: batches are drawn without a look at classes"
    )
    steps_per_epoch: Steps | None = Field(None, description="one per batch_size training images when not given")
    temperature: float = Field(1.0, ge=0, description="steps of a subspace go with size ** temperature")
    class_temperature: float = Field(0.0, ge=0, description="classes are drawn with weights size ** class_temperature")
    schedule: Literal["budget", "published"] = Field(
        "budget", description="steps as `temperature` says, or as many for each subspace as for the largest"
    )
    accumulate: Count = Field(1, description="forward passes a rank splits its part of the batch into")
    engine: Component = Field(Component(name="ddp"), description="who spreads the work: 'ddp' or 'deepspeed'")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the network; weights are float32")
    channels_last: bool = Field(True, description="memory layout of images and weights that convolutions prefer")
    checkpoint_activations: bool = Field(
        False, description="keep a backbone's levels only, compute what lies between them again for backward"
    )
    compile: bool = Field(False, description="by torch.compile, for training; evaluation stays as it is")
    logical_shards: Count = Field(4, description="fixed pieces of a batch in deterministic mode")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="when vectors, loss or gradients are not finite: stop with exit code 4, or leave the step out",
    )
    max_nonfinite: Count = Field(3, description="steps in a row that may be skipped before the run stops")
    verify_ranks_every: Count = Field(100, description="steps between comparisons of the ranks' weights")
    average_weights: float = Field(0.0, ge=0, lt=1, description="decay of the average that is evaluated; 0: none")


class OptimSection(Section):
    """The optimiser and its rates, a function of the epoch only."""

    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="the optimiser")
    # Beyond float32 torch raises in the middle of a step; nothing trains above a million anyway.
    lr: float = Field(1e-5, gt=0, le=1e6, description="learning rate")
    embedding_lr: float | None = Field(
        None, gt=0, le=1e6, description="learning rate of the embedding layer; lr when not given"
    )
    weight_decay: float = Field(1e-4, ge=0, le=1e6, description="that of torch's optimiser")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(True, description="of sgd")
    schedule: Literal["constant", "cosine", "step"] = Field(
        "constant", description="how the rates fall after the warm-up"
    )
    milestones: tuple[float, ...] = Field((), description="epochs at which schedule step multiplies the rate by decay")
    decay: float = Field(0.1, gt=0, le=1, description="factor at each of the milestones")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the rates rise from nothing")
    clip_norm: float | None = Field(
        None, gt=0, description="largest norm of all gradients together; not clipped when not given"
    )


class ClusterSection(Section):
    """Which samples belong to which subspace."""

    backend: Literal["ray", "local"] = Field(
        "ray", description="k-means in actors of Ray, or in the rank of a single-process run"
    )
    index: Literal["auto", "native", "numpy", "faiss", "faiss-gpu", "torch"] = Field(
        "auto",
        description="who finds the nearest centroid; auto: torch on GPUs, native (compiled) with AVX-512, else numpy",
    )
    placement: Literal["actors", "ranks"] = Field(
        "actors",
        description="where rows are while they are clustered: in k-means actors, or beside the rank that embedded them,"
        " so that sums travel only; with Ray",
    )
    features: Literal["penultimate", "embedding", "recycled"] = Field(
        "penultimate",
        description="what is clustered: pooled features of the last level, in a pass over all images; the embedding;"
        " recycled: pooled features, kept from the training passes",
    )
    max_age: Count | None = Field(
        None,
        description="epochs for which recycled features count; older rows are embedded; recluster_every if not given",
    )
    overlap: bool = Field(False, description="k-means runs beside an epoch, and its clusters are used from the next on")
    recluster_every: Count = Field(2, description="epochs between clusterings")
    recluster_after_growth: bool = Field(
        True, description="cluster in the epoch after a split, or when the next clustering is due, as published"
    )
    num_iterations: Count = Field(100, description="most iterations of a k-means")
    num_shards: Processes | None = Field(None, description="k-means actors; one per rank when not given")
    num_cpus: float = Field(0.0, ge=0, description="reserved on Ray by each actor")
    num_gpus: float = Field(0.0, ge=0, description="reserved on Ray by each actor, a fraction of one too")
    min_size: Count | None = Field(None, description="smallest cluster that is kept; the batch size if not given")
    min_classes: int = Field(2, ge=1, description="fewest classes with two images in a cluster that is kept")
    timeout_s: Seconds = Field(600.0, description="of one clustering")


class GrowthSection(Section):
    """When a subspace is split: the constants of the published rule, and ways to differ."""

    enabled: bool = Field(True, description="false: the number of subspaces stays as it is")
    rule: Literal["plateau", "doubling"] = Field(
        "plateau", description="split the tail when progress stalls; or double the clusters of learners that are masks"
    )
    monitor: Literal["nmi", "ami", "recall_at_1", "macro_recall_at_1", "map_at_r", "loss", "dice"] = Field(
        "nmi", description="the validation score that also chooses the best epoch; of 'loss' less is better"
    )
    patience: int = Field(10, gt=0, description="epochs without a new best before a split")
    min_delta: float = Field(0.0, ge=0, description="what a new best must be better by")
    min_tail: int = Field(10, gt=0, description="the last subspace is split only while it is wider than this")
    min_selected: int = Field(5, gt=0, description="fewest dimensions of a new subspace")
    select: Literal["threshold", "top_fraction"] = Field(
        "threshold", description="dimensions above a saliency, or a fraction of the last subspace"
    )
    threshold: float = Field(0.5, ge=0, lt=1, description="of the saliency, scaled to 0..1 in the last subspace")
    fraction: float = Field(
        0.5, gt=0, lt=1, description="of the last subspace that becomes the new one, with select top_fraction"
    )
    score: Literal["abs_of_mean", "mean_of_abs"] = Field(
        "abs_of_mean",
        description="saliency over an epoch: size of the mean of activation times gradient, or mean of its size",
    )
    accept: Literal["always", "validated"] = Field(
        "always", description="keep every split, or take one back that brings no new best within its patience"
    )
    max_subspaces: int | None = Field(
        None, gt=0, description="no split beyond this number; with rule doubling, the number of clusters at the end"
    )
    double_every: Count = Field(2, description="epochs between doublings, with rule doubling")
    freeze_divided: bool = Field(False, description="the backbone rests in the epoch after a doubling")


class EvaluateSection(Section):
    """How validation is scored while a run trains, and all splits at its end."""

    by: Literal["retrieval", "loss", "masks"] = Field(
        "retrieval", description="neighbours of vectors, the loss itself, or the overlap of masks"
    )
    every: Count = Field(1, description="epochs between scores of the validation split")
    batch_size: Count = Field(64, description="images of a rank that are embedded together")
    nmi_seeds: Count = Field(10, description="k-means seeds of the final scores")
    nmi_seeds_while_training: Count = Field(1, description="k-means seeds of the scores after each epoch")
    exclude: Literal["none", "group", "scan"] = Field(
        "none", description="leave images of the query's own group (patient, lesion) or scan out of its gallery"
    )
    gallery: tuple[Literal["leave_one_out", "train"], ...] = Field(
        ("leave_one_out",),
        min_length=1,
        description="where final scores search: the split's others, the training split",
    )
    rerank: Component = Field(Component(name="none"), description="a second order, scored beside the plain one")
    scans: bool = Field(False, description="eta_p and eta_W of Kimia Path24: the classes are scans, cut into patches")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the network while it embeds")

    @field_validator("gallery", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        words = isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names)
        return tuple(dict.fromkeys(names)) if words else names

    @field_validator("rerank", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class CheckpointSection(Section):
    """What is saved, when; the newest complete one is gone on from."""

    every_steps: Steps | None = Field(None, description="besides the one at the end of every epoch")
    keep: int = Field(2, ge=2, description="newest checkpoints that stay, besides the best")
    asynchronous: bool = Field(False, description="write beside the training, from a copy in host memory")
    on_error: Literal["continue", "stop"] = Field("continue", description="when one cannot be written: a full disk")


class RaySection(Section):
    """Which Ray; and what `subspace submit ray` asks of it."""

    address: str | None = Field(None, description="join this cluster; a local one is started when not given")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that a rank reserves")
    gpus_per_worker: float = Field(0.0, ge=0, description="GPUs that a rank reserves")
    placement: Literal["PACK", "SPREAD"] = Field("PACK", description="workers on few nodes, or each on another")
    placement_timeout_s: Seconds = Field(600.0, description="for room: other runs, nodes that are being started")
    autoscaling: bool = Field(False, description="nodes are started on demand: ask for more than there is now")
    stop_timeout_s: int = Field(240, gt=0, le=10**7, description="what the ranks of a stopped job may take to save")


class LaunchSection(Section):
    """Processes, deadlines, and who shows the curves."""

    nproc: Processes = Field(1, description="ranks on this machine; on Ray, ranks in all")
    max_restarts: int = Field(3, ge=0, description="restarts in a row without a newer checkpoint")
    timeout_s: Seconds = Field(600.0, description="of every collective")
    threads: Processes | None = Field(
        None, description="threads of a rank; the cores divided by the ranks when not given"
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        ("tensorboard",), description="who shows curves besides metrics.jsonl; none of them needs a network"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, tree: Any) -> Any:
        """Read run folders from before there were others: tensorboard true or false."""
        if isinstance(tree, dict) and "trackers" not in tree and isinstance(tree.get("tensorboard"), bool):
            wanted = ["tensorboard"] if tree["tensorboard"] else []
            tree = {**{name: value for name, value in tree.items() if name != "tensorboard"}, "trackers": wanted}
        return tree
