"""Samples that are visited more or less often than once an epoch."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from petseg import Manifest
from petseg.data.order import VISIT, epoch_order, epoch_visits
from petseg.data.shards.reader import ShardReader
from petseg.data.weights import digest_of, repeat_factors, sample_weights
from petseg.errors import PetsegError

WEIGHTS = st.lists(st.floats(0, 100), min_size=1, max_size=60).filter(any)


@settings(deadline=None)
@example(weights=[0.0, 5e-324], seed=0, epoch=0)
@example(weights=[1e308, 1e308, 1e300], seed=0, epoch=0)
@given(weights=WEIGHTS, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 99))
def test_visits_are_the_shares_rounded_up_or_down(weights, seed, epoch):
    weights = np.array(weights)
    found = epoch_visits(weights, seed, epoch)
    share = weights / weights.max()
    share *= len(weights) / share.sum()
    assert found.sum() == len(weights)
    assert (found >= np.floor(share - 1e-6)).all() and (found <= np.ceil(share + 1e-6)).all()
    assert (found == epoch_visits(weights, seed, epoch)).all()


def test_over_many_epochs_visits_are_as_the_weights():
    weights = np.array([0.0, 0.3, 1.0, 1.0, 2.5, 7.2])
    mean = np.mean([epoch_visits(weights, 4, epoch) for epoch in range(4000)], axis=0)
    assert np.abs(mean - 6 * weights / weights.sum()).max() < 0.03


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    window=st.none() | st.integers(1, 7),
    data=st.data(),
)
def test_an_order_has_every_visit_once(sizes, window, data):
    n = sum(sizes)
    weights = np.array(data.draw(st.lists(st.floats(0, 5), min_size=n, max_size=n).filter(any)))
    order = epoch_order(sizes, 3, 2, window, weights)
    expected = [index + visit * VISIT for index, k in enumerate(epoch_visits(weights, 3, 2)) for visit in range(k)]
    assert sorted(order.tolist()) == sorted(expected)
    alike = epoch_order(sizes, 3, 2, window, np.ones(n))
    assert alike.tolist() == epoch_order(sizes, 3, 2, window).tolist()


def test_repeat_factors_are_the_papers():
    present = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    assert repeat_factors(present).tolist() == [1, 2, 1, 1]


@pytest.fixture(scope="module")
def weights(packed):
    return np.where(np.arange(42) % 7 == 0, 4.0, 0.5)


@pytest.mark.parametrize("name", ["dali", "webdataset", "nvimgcodec"])
def test_every_loader_visits_them_alike_and_shows_another_crop_each_time(load, packed, weights, name):
    options = {"fit": "crop", "weights": weights, "seed": 6, "batch_size": 5}
    loader, other = (
        load(name, packed, **options),
        load("webdataset", packed, **{**options, "batch_size": 2, "world": 2, "rank": 0}),
    )
    boxes: dict[int, list[tuple[int, ...]]] = {}
    first = []
    for batch in loader:
        assert batch.visits is not None
        first += batch.indices.tolist()
        for index, box in zip(batch.indices.tolist(), batch.boxes.tolist(), strict=True):
            boxes.setdefault(index, []).append(tuple(box))
    again = [index for index, found in boxes.items() if len(found) > 1]
    assert again and all(index % 7 == 0 for index in again)
    assert all(len(set(boxes[index])) > 1 for index in again)
    assert [index for batch in other for index in batch.indices.tolist()][:2] == first[:2]


def test_a_run_resumes_only_with_the_weights_that_it_has(load, packed, weights):
    loader = load("webdataset", packed, weights=weights)
    taken = [next(iterator).indices.tolist() for iterator in [iter(loader)] for _ in range(4)]
    state = loader.state_dict()
    assert state["weights"] == digest_of(weights)
    whole = [batch.indices.tolist() for batch in load("webdataset", packed, weights=weights)]
    rest = load("dali", packed, weights=weights)
    rest.load_state_dict(state)
    assert taken + [batch.indices.tolist() for batch in rest] == whole
    for others in (None, weights * 2):
        with pytest.raises(PetsegError, match="of weights"):
            load("webdataset", packed, weights=others).load_state_dict(state)


def test_damaged_samples_are_replaced_here_too(packed):
    from petseg.data.loaders.loader import LoaderPlan

    plan = LoaderPlan(
        digest="", split="train", sizes=(5,), batch_size=1, seed=0, training=True, weights=np.array([0, 0, 0, 0, 1.0]),
        bad=(4,),
    )  # fmt: skip
    assert sorted((plan.order(0)[:] % VISIT).tolist()) == [0] * 5 and plan.total == 5


def test_evaluation_takes_no_weights(load, packed, weights):
    with pytest.raises(PetsegError, match="evaluation visits every sample once"):
        load("webdataset", packed, weights=weights, training=False)
    for wrong in (np.ones(3), np.zeros(42), np.full(42, np.nan), -np.ones(42)):
        with pytest.raises(PetsegError, match="give 42 numbers"):
            load("webdataset", packed, weights=wrong)


def test_a_file_names_keys(packed, tmp_path):
    manifest, file = Manifest.load(packed), tmp_path / "weights.txt"
    reader = ShardReader(packed, manifest, "train")
    keys = [reader.key(index) for index in range(3)]
    reader.close()
    file.write_text(f"{keys[1]} 3.5\n\n{keys[2]} 0\n")
    assert sample_weights(str(file), packed, manifest)[:4].tolist() == [1, 3.5, 0, 1]
    for text, words in (
        ("Nobody 2\n", "no training sample is called Nobody"),
        (f"{keys[0]}\n", "line 1: '.*' is not KEY WEIGHT"),
        (f"{keys[0]} -1\n", "is not KEY WEIGHT"),
        (f"{keys[0]} nan\n", "is not KEY WEIGHT"),
    ):
        file.write_text(text)
        with pytest.raises(PetsegError, match=f"--sample-weights: .*{words}"):
            sample_weights(str(file), packed, manifest)
    with pytest.raises(PetsegError, match="no such file"):
        sample_weights(str(tmp_path / "none"), packed, manifest)
    assert sample_weights("none", packed, manifest) is None
    assert sample_weights("balanced", packed, manifest).tolist() == [1.0] * 42, "every pet shows every class"
