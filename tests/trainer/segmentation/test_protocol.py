"""The protocol: thresholds never see what they are scored on, and are the best where they were chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_shards.augment import AugmentConfig
from data_shards.build import build
from data_shards.errors import UserError
from data_shards.reader import ShardFolder, SplitReader, open_shards
from trainer.segmentation.protocol import NUM_THRESHOLDS, Maps, Masked, Method, Places, Rows, halves, judge, splits

CONFIG = AugmentConfig(size=32)


def noisy(seed: int, noise: float) -> Method:
    """Return maps that are the true masks, scaled to -3..5, and noise."""

    def make(reader: SplitReader, rows: Rows) -> Maps:
        def maps(places: Places) -> Tensor:
            out = []
            for row in rows[places]:
                rng = np.random.default_rng([seed, int(reader.sample_ids[row])])
                mask = reader.mask(int(row)) > 0
                out.append(-3 + 8 * (mask * (1 - noise) + noise * rng.random(mask.shape)))
            return torch.from_numpy(np.stack(out)).float()

        return maps

    return Method("noisy", {"only": make})


@pytest.fixture(scope="module")
def parts(phantoms: ShardFolder) -> tuple[Masked, Masked]:
    tuning, held_out, without = splits(phantoms.split("validation"), phantoms.split("test"), CONFIG)
    assert (tuning.name, held_out.name) == ("validation", "test")
    assert without == {"validation": 0, "test": 0}
    return tuning, held_out


def dice(predicted: np.ndarray, true: np.ndarray) -> float:
    return 2 * (predicted & true).sum() / (predicted.sum() + true.sum())


def test_the_threshold_is_the_best_of_the_tuning_images(parts: tuple[Masked, Masked]) -> None:
    tuning, held_out = parts
    method = noisy(0, 0.7)
    found = judge(method, tuning, held_out)
    maps = method.variants["only"](tuning.reader, tuning.rows)(slice(None)).numpy()
    candidates = np.linspace(maps.min(), maps.max(), NUM_THRESHOLDS).astype(np.float32)
    means = [np.mean([dice(m >= t, y) for m, y in zip(maps, tuning.masks, strict=True)]) for t in candidates]
    assert found.tuning_dice == pytest.approx(max(means))
    assert found.threshold == float(candidates[int(np.argmax(means))])
    scored = method.variants["only"](held_out.reader, held_out.rows)(slice(None)).numpy() >= found.threshold
    expected = [dice(m, y) for m, y in zip(scored, held_out.masks, strict=True)]
    np.testing.assert_allclose(found.overlap.dice, expected)


def test_the_scored_masks_do_not_move_the_threshold(parts: tuple[Masked, Masked]) -> None:
    tuning, held_out = parts
    upside_down = Masked("test", held_out.reader, held_out.rows, ~held_out.masks)
    before, after = (judge(noisy(0, 0.7), tuning, images) for images in (held_out, upside_down))
    assert (before.threshold, before.tuning_dice) == (after.threshold, after.tuning_dice)
    assert before.overlap.dice.mean() > 0.6 > after.overlap.dice.mean()


def test_of_several_variants_the_better_one_on_the_tuning_images_counts(parts: tuple[Masked, Masked]) -> None:
    good, bad = noisy(0, 0.5).variants["only"], noisy(1, 0.9).variants["only"]
    for variants in ({"good": good, "bad": bad}, {"bad": bad, "good": good}):
        assert judge(Method("both", variants), *parts).variant == "good"
    fixed = judge(Method("both", {"bad": bad, "good": good}, threshold=1.0), *parts)
    assert (fixed.variant, fixed.threshold) == ("good", 1.0)


def test_maps_of_one_value_have_scores(parts: tuple[Masked, Masked]) -> None:
    def make(reader: SplitReader, rows: Rows) -> Maps:
        return lambda places: torch.zeros(len(rows[places]), 32, 32)

    found = judge(Method("flat", {"only": make}), *parts)
    assert found.threshold == 0
    everything = judge(Method("all", {"only": lambda r, rows: lambda p: torch.ones(len(rows[p]), 32, 32)}), *parts)
    np.testing.assert_array_equal(found.overlap.dice, everything.overlap.dice)
    assert found.overlap.dice.mean() > 0


def test_outside_of_the_field_nothing_is_predicted(parts: tuple[Masked, Masked]) -> None:
    """As if the maps themselves were lowest there; and what is there does not move the candidates for the threshold."""
    fields = [np.zeros_like(part.masks) for part in parts]
    for field in fields:
        field[:, 4:20, 6:30] = True
    bounded = [Masked(p.name, p.reader, p.rows, p.masks, f) for p, f in zip(parts, fields, strict=True)]
    method = noisy(0, 0.7)

    def cut_off(reader: SplitReader, rows: Rows) -> Maps:
        def maps(places: Places) -> Tensor:
            found = method.variants["only"](reader, rows)(places).clone()
            low = float(method.variants["only"](reader, rows)(slice(None))[:, 4:20, 6:30].min())
            return torch.where(torch.from_numpy(fields[0][:1]), found, torch.tensor(low))

        return maps

    found, expected = judge(method, *bounded), judge(Method("cut off", {"only": cut_off}), *parts)
    assert found.threshold == expected.threshold and found.tuning_dice == pytest.approx(expected.tuning_dice)
    np.testing.assert_allclose(found.overlap.dice, expected.overlap.dice)
    everything = Method("all", {"only": lambda r, rows: lambda p: torch.ones(len(rows[p]), 32, 32)}, threshold=0.5)
    assert (judge(everything, *bounded).overlap.predicted == 16 * 24).all()


def test_the_field_of_lit_pixels_is_asked_for(phantoms: ShardFolder) -> None:
    tuning, held_out, _ = splits(phantoms.split("validation"), phantoms.split("test"), CONFIG, only_lit=True)
    for part in (tuning, held_out):
        assert part.field is not None and part.field.shape == part.masks.shape
        image = part.reader.image(int(part.rows[0]))
        assert part.field[0].mean() == pytest.approx((image.max(axis=2) > 20).mean(), abs=0.05)


def make_table(folder: Path, masks: dict[str, list[bool]], groups: bool = False) -> ShardFolder:
    """Write a table: {split: has image i a mask}, with groups of two if wanted, and build it."""
    lines = ["path,label,mask,split,group"]
    for split, flags in masks.items():
        for i, has in enumerate(flags):
            name = f"{split}{i}.png"
            Image.fromarray(np.full((20, 24, 3), 5 * i, np.uint8)).save(folder / name)
            Image.fromarray(np.eye(20, 24, dtype=np.uint8)).save(folder / f"m{name}")
            group = f"{split}-g{i // 2}" if groups else ""
            lines.append(f"{name},{'ab'[i % 2]},{f'm{name}' if has else ''},{split},{group}")
    (folder / "labels.csv").write_text("\n".join(lines))
    build(f"table:{folder}/labels.csv", folder / "shards")
    return open_shards(folder / "shards")


def test_images_without_a_mask_are_left_out_and_counted(tmp_path: Path) -> None:
    flags = {"train": [False] * 2, "validation": [True, False, True], "test": [False, True, False, True]}
    folder = make_table(tmp_path, flags)
    tuning, held_out, without = splits(folder.split("validation"), folder.split("test"), CONFIG)
    assert tuning.rows.tolist() == [0, 2]
    assert held_out.rows.tolist() == [1, 3]
    assert held_out.masks.shape == (2, 32, 32)
    assert without == {"validation": 1, "test": 2}


@pytest.mark.parametrize("test_masks", [None, [False, False]])
def test_without_a_test_split_one_half_chooses_for_the_other(tmp_path: Path, test_masks: list[bool] | None) -> None:
    flags = {"train": [False] * 2, "validation": [True] * 40, **({"test": test_masks} if test_masks else {})}
    folder = make_table(tmp_path, flags, groups=True)
    validation = folder.split("validation")
    test = folder.split("test") if test_masks else None
    tuning, held_out, _ = splits(validation, test, CONFIG)
    assert (tuning.name, held_out.name) == ("half of validation", "the other half of validation")
    assert held_out.reader is validation
    assert sorted([*tuning.rows, *held_out.rows]) == list(range(40))
    assert not {validation.groups[r] for r in tuning.rows} & {validation.groups[r] for r in held_out.rows}
    assert 6 < len(tuning.rows) < 34


def test_halves_depend_on_the_sample_alone(phantoms: ShardFolder) -> None:
    train = phantoms.split("train")
    rows = np.arange(len(train))
    first = halves(train, rows)
    assert 0.25 < first.mean() < 0.75
    assert np.array_equal(halves(train, rows[5:20]), first[5:20])


def test_no_masks_is_one_sentence(tmp_path: Path) -> None:
    folder = make_table(tmp_path, {"train": [True] * 2, "validation": [False] * 2, "test": [True] * 2})
    with pytest.raises(UserError, match="validation split of these shards holds no masks"):
        splits(folder.split("validation"), folder.split("test"), CONFIG)
    (tmp_path / "one").mkdir()
    folder = make_table(tmp_path / "one", {"train": [True] * 2, "validation": [True, False]})
    with pytest.raises(UserError, match="1 validation images with a mask are too few"):
        splits(folder.split("validation"), None, CONFIG)
