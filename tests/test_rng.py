"""Draws have the same bits on every machine: golden numbers are the specification."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from hfmega import rng
from hfmega.errors import HfmegaError
from hfmega.rng import NORMAL_TABLE_SHA256, Draws, normal_table, permutation, philox, raw_words

KEY = (7, "claim")


def test_the_normal_table_has_its_pinned_bytes() -> None:
    table = normal_table()
    assert table.dtype == np.float32
    assert table.shape == (65536,)
    digest = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    assert digest == "55d9ba3bb184877f40f8091824820de9f0757438104d5cbcc8042171d9bdfa88" == NORMAL_TABLE_SHA256


def test_the_normal_table_is_standard_normal() -> None:
    table = normal_table().astype(np.float64)
    assert np.array_equal(table, -table[::-1])
    assert np.all(np.diff(table) >= 0)
    assert table.std() == pytest.approx(1.0, abs=1e-4)
    assert (table**4).mean() == pytest.approx(3.0, abs=2e-3)
    assert table.max() == round(stats.norm.ppf(1 - 2**-17) * 4096) / 4096


def test_a_platform_with_another_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "NORMAL_TABLE_SHA256", "0" * 64)
    with pytest.raises(HfmegaError, match="would not replay"):
        normal_table.__wrapped__()


def test_first_integers_of_a_key() -> None:
    draws = Draws(*KEY)
    assert [draws.integer() for _ in range(3)] == [5371513150482928121, 315834513210877187, 16459574422376591880]


def test_a_uniform_is_the_top_53_bits_of_an_integer() -> None:
    draws, integers = Draws(*KEY), Draws(*KEY)
    uniforms = [draws.uniform() for _ in range(1000)]
    assert uniforms[:3] == [0.2911903113644023, 0.01712142326845667, 0.8922753173463771]
    assert uniforms == [(integers.integer() >> 11) / 2**53 for _ in range(1000)]
    assert 0 <= min(uniforms) < max(uniforms) < 1


def test_below_gives_every_integer_under_its_limit_and_no_other() -> None:
    draws = Draws(*KEY)
    assert [draws.below(10) for _ in range(10)] == [2, 0, 8, 1, 6, 9, 8, 7, 6, 5]
    counts = np.bincount([draws.below(10) for _ in range(10_000)], minlength=10)
    assert len(counts) == 10
    assert counts.min() > 850  # five standard deviations of a binomial of mean 1,000 are 150
    assert counts.max() < 1150
    assert {draws.below(1) for _ in range(100)} == {0}


def test_permutation_of_a_key() -> None:
    assert permutation(10, *KEY).tolist() == [1, 3, 0, 9, 4, 8, 7, 6, 2, 5]
    assert permutation(0, *KEY).tolist() == []
    assert np.array_equal(np.sort(permutation(5000, *KEY)), np.arange(5000))


@pytest.mark.parametrize("other", [(8, "claim"), (7, "claim "), (7,), (7, "claim", 0)])
def test_another_key_draws_others(other: tuple[object, ...]) -> None:
    assert not np.any(philox(*KEY).random_raw(100) == philox(*other).random_raw(100))


def test_words_are_cut_from_integers_little_end_first() -> None:
    first = int(philox(*KEY).random_raw())
    assert raw_words(philox(*KEY), 2, "<u4").tolist() == [first % 2**32, first >> 32]
    assert raw_words(philox(*KEY), 3, "<u2").tolist() == [first % 2**16, (first >> 16) % 2**16, (first >> 32) % 2**16]
