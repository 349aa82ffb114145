"""What pytest collected in this run: the documentation names tests, and they have to exist."""

import pytest

#: The names of all tests of the run, before marks and -k took some away.
NAMES: pytest.StashKey[frozenset[str]] = pytest.StashKey()
