"""`subspace index` and `subspace search`: whole paths, against vectors that the network gives by itself."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.augment_batch import normalise
from data_shards.evaluation import image_view
from data_shards.reader import open_shards
from launch import build
from launch.retrieval.answer import Query, Refused
from launch.retrieval.searcher import Searcher
from launch.trained import alone, config_of, load
from tests.launch.best_run import best_run
from tests.launch.retrieval.conftest import DATA, SIZE

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def searcher(run: Path) -> Iterator[Searcher]:
    with Searcher(run) as opened:
        yield opened


def by_hand(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample ids, vectors and groups of the training split, image by image."""
    config = config_of(run)
    transform = build.transform(config)
    reader = open_shards(config.data.shards).split("train")
    with alone(config), torch.no_grad():
        found = load(run, config)
        vectors = []
        for row in range(len(reader)):
            view = torch.from_numpy(image_view(reader.image(row), transform).transpose(2, 0, 1)[None].copy())
            vectors.append(found.partition.normalize(found.network(normalise(view, transform)).vectors)[0].numpy())
    return reader.sample_ids, np.stack(vectors), reader.groups


def test_a_file_is_searched_among_the_training_images(run: Path, files: Path, searcher: Searcher) -> None:
    ids, vectors, groups = by_hand(run)
    for name in ("009.png", "012.png"):  # validation and test images: not indexed
        row = int(name[:3])
        (answer,) = searcher.answers([Query((files / name).read_bytes(), k=72)])
        own = open_shards(config_of(run).data.shards).split("validation" if row == 9 else "test")
        view = image_view(own.image(int(np.flatnonzero(own.sample_ids == row)[0])), build.transform(config_of(run)))
        assert answer.vote[0].share >= 0.1
        distances = {n.sample_id: n.distance for n in answer.neighbours}
        assert sorted(distances) == sorted(ids.tolist())
        assert list(distances.values()) == sorted(distances.values())
        (vector, attention) = searcher._embed([searcher._seen(Query((files / name).read_bytes()))])[0]
        assert attention.shape == (SIZE // 2, SIZE // 2) or attention.ndim == 2
        assert np.array_equal(searcher._seen(Query((files / name).read_bytes())).pixels, view)
        for sample, other in zip(ids.tolist(), vectors, strict=True):
            assert distances[sample] == pytest.approx(float(np.linalg.norm(other - vector)), abs=1e-4)
        assert {n.group for n in answer.neighbours} == set(groups)


def test_an_indexed_image_is_left_out_of_its_own_answer(searcher: Searcher, files: Path) -> None:
    by_id = searcher.answer(Query(sample_id=1, k=71))
    assert 1 not in [n.sample_id for n in by_id.neighbours]
    as_file = searcher.answer(Query((files / "001.png").read_bytes(), k=72))
    assert as_file.neighbours[0].sample_id == 1
    assert as_file.neighbours[0].distance < 1e-4
    assert {n.sample_id for n in as_file.neighbours[1:]} == {n.sample_id for n in by_id.neighbours}


def test_a_patients_images_are_left_out(searcher: Searcher, files: Path) -> None:
    indexed, foreign = ((files / name).read_bytes() for name in ("001.png", "009.png"))
    for query, group in (
        (Query(sample_id=1, k=72, exclude="group"), "patient 0"),
        (Query(indexed, k=72, exclude="group"), "patient 0"),  # found out by its vector
        (Query(foreign, k=72, exclude="group", group="patient 5"), "patient 5"),
    ):
        answer = searcher.answer(query)
        assert answer.excluded_group == group
        assert len(answer.neighbours) == 69
        assert group not in {n.group for n in answer.neighbours}
    nobody = searcher.answer(Query(foreign, k=72, exclude="group"))
    assert nobody.excluded_group is None
    assert len(nobody.neighbours) == 72


def test_subspaces_restrict_the_ranking(searcher: Searcher, files: Path) -> None:
    data = (files / "009.png").read_bytes()
    whole, *parts = (searcher.answer(Query(data, k=72, subspaces=which)) for which in ((), (0,), (1,), (1, 0)))
    assert whole.subspaces == [0, 1]
    for k, part in enumerate(parts[:2]):
        assert part.subspaces == [k]
        for found in part.neighbours:
            assert found.distance == pytest.approx(found.by_subspace[k], abs=1e-5)
    assert [n.sample_id for n in parts[2].neighbours] == [n.sample_id for n in whole.neighbours]
    assert [n.sample_id for n in parts[0].neighbours] != [n.sample_id for n in parts[1].neighbours]
    assert parts[0].out_of_distribution == whole.out_of_distribution


def test_an_image_is_unlike_the_others_beyond_the_distance_of_the_manifest(run: Path, searcher: Searcher) -> None:
    ids, vectors, groups = by_hand(run)
    nearest = [
        min(float(np.linalg.norm(vectors[i] - vectors[j])) for j in range(len(ids)) if groups[j] != groups[i])
        for i in range(len(ids))
    ]
    limit = searcher.manifest.novelty
    assert limit.distance == pytest.approx(np.quantile(nearest, 0.99), abs=1e-5)
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (16, 16), dtype=np.uint8) * 255).save(noise, format="PNG")
    closest = int(ids[int(np.argmin(nearest))])
    for query, flag in ((Query(noise.getvalue()), True), (Query(sample_id=closest, exclude="group"), False)):
        found = searcher.answer(query)
        assert found.out_of_distribution.distance == pytest.approx(found.neighbours[0].distance, abs=1e-6)
        assert found.out_of_distribution.flag is flag is (found.neighbours[0].distance > limit.distance)


def test_a_batch_answers_as_single_queries_do_and_bad_ones_spoil_nothing(searcher: Searcher, files: Path) -> None:
    good = [Query((files / f"{i:03d}.png").read_bytes(), k=3) for i in (9, 12, 1)]
    bad = [Query(b"GIF89a"), Query(sample_id=9), Query(good[0].image, subspaces=(2,)), Query(sample_id=9, overlay=True)]
    found = searcher.answers([good[0], *bad[:2], good[1], *bad[2:], good[2]])
    refused = [answer for answer in found if isinstance(answer, Refused)]
    assert [answer.status for answer in refused] == [400, 404, 422, 404]
    assert "0 to 1" in str(refused[2])
    for answer, query in zip([found[0], found[3], found[6]], good, strict=True):
        single = searcher.answer(query)
        assert [n.sample_id for n in answer.neighbours] == [n.sample_id for n in single.neighbours]
        assert answer.neighbours[0].distance == pytest.approx(single.neighbours[0].distance, abs=1e-4)


def test_the_command_line(run: Path, files: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    words = ("search", run, files / "009.png", "1", "-k", "4")
    code, text, err = cli(*words, "--json", "--overlay", out)
    assert code == 0, err
    found = json.loads(text)
    assert [answer["query"] for answer in found] == [str(files / "009.png"), "1"]
    assert all(len(answer["neighbours"]) == 4 for answer in found)
    with Image.open(out) as picture:
        assert picture.width > picture.height
    code, text, err = cli(*words)
    assert code == 0, err
    assert found[0]["neighbours"][0]["path"] in text


def test_mistakes_are_one_sentence(run: Path, files: Path, shards: Path, cli: Cli, tmp_path: Path) -> None:
    image = files / "009.png"
    for words, part in (
        (("search", run), "name at least one image"),
        (("search", run, image, "-k", "0"), "-k must be"),
        (("search", run, tmp_path / "none.png"), "none.png"),
        (("search", run, files / "images.csv"), "not a JPEG"),
        (("search", run, image, "--subspaces", "2"), "0 to 1"),
        (("search", run, image, "--exclude", "group", "--group", "nobody"), "nobody"),
        (("search", run, image, "--index", tmp_path), "subspace index"),
        (("search", run, image, "--overlay", tmp_path / "no" / "a.png"), "cannot write"),
        (("search", tmp_path, image), "not a run folder"),
        (("index", run, tmp_path), "manifest"),
        (("index", tmp_path), "not a run folder"),
    ):
        code, text, err = cli(*words)
        assert code in (2, 3), err
        assert len(err.strip().splitlines()) == 1
        assert part in err
        assert not text
    other = best_run(tmp_path / "other", shards, SIZE, data=DATA, model={"num_dims": 8})
    shutil.copytree(run / "index", other / "index")
    code, _, err = cli("search", other, image)
    assert code == 2
    assert "other weights" in err


def test_pictures_need_the_shards_that_were_indexed(run: Path, shards: Path, files: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "run"
    shutil.copytree(run, moved)
    body = (moved / "config.yaml").read_text().replace(str(shards), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(body)
    with Searcher(moved) as opened:  # the manifest of the index knows where they are
        assert opened.originals.thumbnail(1)[1] == "png"
        opened.originals._manifest = opened.manifest.model_copy(update={"shards_sha256": "0" * 64})
        del opened.originals.__dict__["_folder"]
        with pytest.raises(Refused, match="not those that were indexed"):
            opened.originals.thumbnail(1)
        assert opened.answer(Query(sample_id=1, overlay=True)).picture is None
