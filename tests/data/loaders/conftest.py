"""What tests of loaders share."""

import pytest
import torch


@pytest.fixture(scope="session")
def same():
    """Whether two batches hold the same samples and pixels."""

    def compare(one, other) -> bool:
        return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "codes", "indices"))

    return compare
