"""The ledger: claims are exclusive, facts are published once, damage is refused by name."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from hpcrl.errors import CorruptFileError
from hpcrl.store.ledger import Claim, End, Ledger, Unit, now


def claim(unit: Unit, number: int = 1, **changes: object) -> Claim:
    made = Claim(unit, number, token=f"{unit.name}-{number}", door="sbatch", created=now())
    return dataclasses.replace(made, **changes)


def end(outcome: str = "done") -> End:
    return End(outcome, "why", "17_0", 2, now())  # type: ignore[arg-type]


def test_looking_creates_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert (ledger.all_tries(), ledger.tries(Unit("main", 0)), ledger.halted()) == ({}, [], None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    ledger, unit = Ledger(tmp_path), Unit("play", 17)
    first = claim(unit, dependency=("3", "4"), elements=(0, 2), submitter="12")
    assert ledger.claim(first)
    assert [(one.claim, one.job, dict(one.ends)) for one in ledger.tries(unit)] == [(first, None, {})]
    assert ledger.record_job(unit, 1, "99")
    assert ledger.record_end(unit, 1, 2, end())
    assert ledger.record_end(unit, 1, 0, end("failed"))
    (found,) = ledger.tries(unit)
    assert (found.claim, found.job, found.number, found.unit) == (first, "99", 1, unit)
    assert found.submitted is not None
    assert {element: one.outcome for element, one in found.ends.items()} == {0: "failed", 2: "done"}


def test_the_first_word_stands(tmp_path: Path) -> None:
    ledger, unit = Ledger(tmp_path), Unit("main", None)
    assert ledger.claim(claim(unit))
    assert not ledger.claim(claim(unit, door="slurm"))
    assert ledger.record_job(unit, 1, "1")
    assert not ledger.record_job(unit, 1, "2")
    assert ledger.record_end(unit, 1, None, end("stopped"))
    assert not ledger.record_end(unit, 1, None, end("done"))
    (found,) = ledger.tries(unit)
    assert (found.claim.door, found.job, found.ends[None].outcome) == ("sbatch", "1", "stopped")


def test_one_of_many_claims_a_try(tmp_path: Path) -> None:
    ledger, unit = Ledger(tmp_path), Unit("main", 0)
    won: list[str] = []

    def race(name: str) -> None:
        if ledger.claim(claim(unit, submitter=name)):
            won.append(name)

    threads = [threading.Thread(target=race, args=(str(index),)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [one.claim.submitter for one in ledger.tries(unit)] == won


def test_units_are_listed_in_order_and_not_mixed_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for unit in (Unit("play", 10), Unit("main", 2), Unit("play", 2), Unit("play.2", 2), Unit("main", None)):
        for number in (2, 1):
            ledger.claim(claim(unit, number))
    listed = ledger.all_tries()
    assert [unit.name for unit in listed] == ["main-loop", "main-000002", "play-000002", "play.2-000002", "play-000010"]
    assert all([one.number for one in tries] == [1, 2] for tries in listed.values())
    assert [one.unit for one in ledger.tries(Unit("play", 2))] == [Unit("play", 2)] * 2


def test_halted_until_a_person_says_go_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.halt("'play-000017' failed 3 times")
    assert not ledger.halt("something else")
    assert ledger.halted() == "'play-000017' failed 3 times"
    ledger.go_on()
    ledger.go_on()
    assert ledger.halted() is None


@pytest.mark.parametrize("kind", ["claim", "job", "end"])
def test_a_flipped_bit_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    ledger, unit = Ledger(tmp_path), Unit("main", 3)
    ledger.claim(claim(unit))
    ledger.record_job(unit, 1, "1")
    ledger.record_end(unit, 1, None, end())
    path = ledger.path / f"{kind}-main-000003-01.json"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=path.name):
        ledger.tries(unit)
