"""What units compute with travels by value, networks by their names, and large things once."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from accuquant._util.progress import AtHome, Silent
from accuquant.units.per_worker import PerWorker
from accuquant.units.travelling import Unpacker, pack


@pytest.fixture
def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Sequential(nn.Linear(300, 2))
        ).eval()


def no_parts(token: str) -> bytes:
    raise AssertionError(token)


def test_a_closure_computes_with_the_network_of_the_process_that_it_comes_to(network: Any) -> None:
    last, mean, weight, x = network[2][0], network[1].running_mean, network[0].weight, torch.ones(1, 300)

    def compute(unit: str) -> list[Tensor]:
        assert isinstance(mean, Tensor)
        return [network(x * int(unit)), last(x), mean.sum() + weight.sum()]

    parcel = pack(compute, {"network": network})
    assert len(parcel.data) < 5000  # the weights alone are 360,000
    there = copy.deepcopy(network)
    there[2][0].weight.data.fill_(1)
    there[1].running_mean.fill_(2)
    expected = [there(x * 3), there[2][0](x), there[1].running_mean.sum() + there[0].weight.sum()]
    found = Unpacker({"network": there}).unpack(parcel.data, no_parts)("3")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert not torch.equal(found[0], compute("3")[0])


def test_what_is_no_part_of_a_network_travels_by_value(network: Any) -> None:
    other = copy.deepcopy(network[2][0])
    found = Unpacker({}).unpack(pack(lambda: other, {"network": network}).data, no_parts)()
    assert found is not other
    assert torch.equal(found.weight, other.weight)


def test_what_is_per_worker_is_made_once_for_all_stages_that_refer_to_it(network: Any) -> None:
    made: list[str] = []
    shared = PerWorker(lambda: Made(network, made))
    parcels = [pack(lambda unit, k=k: (shared.get(), k), {"network": network}) for k in range(2)]
    assert [list(parcel.parts) for parcel in parcels] == [[shared.token]] * 2
    there = Unpacker({"network": copy.deepcopy(network)})
    first, second = (there.unpack(p.data, p.parts.__getitem__)("u") for p in parcels)
    assert first[0] is second[0]
    assert (first[1], second[1]) == (0, 1)
    assert first[0].network is not network
    assert made == []  # nobody here asked for it
    there.forget()
    assert there.unpack(parcels[0].data, no_parts)("u")[0] is not first[0]


def test_what_no_stage_refers_to_any_more_is_let_go(network: Any) -> None:
    shared, there = PerWorker(lambda: Made(network, [])), Unpacker({"network": network})
    with_it, without = pack(shared, {"network": network}), pack("nothing", {"network": network})
    first = there.unpack(with_it.data, with_it.parts.__getitem__).get()
    there.unpack(without.data, no_parts)
    assert there.unpack(with_it.data, with_it.parts.__getitem__).get() is not first


def test_one_value_per_worker_may_be_made_from_another(network: Any) -> None:
    inner = PerWorker(lambda: [network])
    outer = PerWorker(lambda: (inner.get(), 1))
    parcel = pack(lambda: (outer.get(), inner.get()), {"network": network})
    assert set(parcel.parts) == {inner.token, outer.token}
    (found, one), same = Unpacker({"network": network}).unpack(parcel.data, parcel.parts.__getitem__)()
    assert found is same
    assert found[0] is network
    assert one == 1


def test_progress_stays_at_home() -> None:
    told: list[Any] = []

    class Loud(Silent):
        lock = None

        def __init__(self) -> None:
            self.lock = threading.Lock()  # what cannot travel

        def advance(self, units: int = 1) -> None:
            told.append(units)

    here = AtHome(Loud())

    def compute(unit: str) -> Any:
        here.advance(3)
        return type(here)

    assert Unpacker({}).unpack(pack(compute, {}).data, no_parts)("u") is Silent
    assert told == []
    assert compute("u") is AtHome
    assert told == [3]


def test_what_cannot_travel_is_an_error_where_the_work_is_handed_out() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot pickle .*lock"):
        pack(lambda unit: lock, {})


class Made:
    def __init__(self, network: nn.Module, made: list[str]) -> None:
        self.network = network
        made.append("made")
