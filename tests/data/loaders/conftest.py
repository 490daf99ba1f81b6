"""What tests of loaders share."""

import pytest
import torch

from tests.data.loaders.ways import open_loader


@pytest.fixture
def load():
    """Builds loaders and closes them at the end."""
    made = []

    def build(name, shards, **options):
        made.append(open_loader(name, shards, **options))
        return made[-1]

    yield build
    for loader in made:
        loader.close()


@pytest.fixture(scope="session")
def same():
    """Whether two batches hold the same samples and pixels."""

    def compare(one, other) -> bool:
        return all(
            torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "codes", "indices", "boxes")
        )

    return compare
