import pytest
import torch

from petseg.system import available_memory
from petseg.training.auto import CACHE_SHARE, resolve_cache

CPU = torch.device("cpu")


def test_a_cache_is_chosen_where_it_takes_little_memory():
    little = 1_000_000
    assert resolve_cache("auto", CPU, little, ranks=1) == "host"
    assert resolve_cache("auto", CPU, int(2 * CACHE_SHARE["cpu"] * available_memory()), ranks=1) == "none"
    # Several ranks share a cache by /dev/shm, of which containers have 64 MB.
    assert resolve_cache("auto", CPU, little, ranks=2) == "none"


@pytest.mark.parametrize("choice", ["none", "host", "device"])
def test_what_is_asked_for_is_taken(choice):
    assert resolve_cache(choice, CPU, 10**15, ranks=2) == choice
