"""How much lengths vary, from counts, sums and sums of squares."""

import pytest

from autoscaling.squares import SquareSums
from deployments.signals import Served


def test_the_variation_is_the_squared_deviation_by_the_mean() -> None:
    """10 and 30 read: deviation 10, mean 20; outputs of 5 and 5 don't vary."""
    found = SquareSums().add(Served(2, 40, 10, read_tokens_squared=1000, output_tokens_squared=50))
    assert found.read_variation == pytest.approx(0.25)
    assert found.output_variation == pytest.approx(0)


def test_what_was_cached_of_a_prompt_varies_nothing() -> None:
    """Of 100 and 100, 90 and 70 are cached: 10 and 30 are read."""
    served = Served(2, 200, 10, cached_tokens=160, read_tokens_squared=1000)
    assert SquareSums().add(served).read_variation == pytest.approx(0.25)


def test_answers_without_squares_count_neither_as_equal_nor_as_few() -> None:
    """An older gateway's long prompts would make those of the newer look short."""
    known = SquareSums().add(Served(2, 40, 10, read_tokens_squared=1000))
    assert known.add(Served(100, 100_000, 100)) == known


def test_variation_is_forgotten_with_the_answers_it_is_of() -> None:
    """Two of 10 and 30 at half weigh as one: with two of 20, 500 + 800 over 3."""
    half = SquareSums().add(Served(2, 40, 10, read_tokens_squared=1000)).fade(0.5)
    assert half.read_variation == pytest.approx(0.25)
    later = half.add(Served(2, 40, 10, read_tokens_squared=800))
    assert later.read_variation == pytest.approx(1300 / 3 / 20**2 - 1)


def test_nothing_read_varies_nothing_and_absurd_squares_never_less() -> None:
    assert SquareSums().read_variation == 0
    assert SquareSums(2, 40, 1, 10, 1).read_variation == 0
