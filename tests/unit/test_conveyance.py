"""The conveyances: what the configuration offers is what there is."""

from proxyshim.config import CONVEYANCES
from proxyshim.conveyance import BY_NAME


def test_each_value_of_convey_is_a_conveyance_and_each_conveyance_a_value() -> None:
    assert set(CONVEYANCES) == set(BY_NAME)
