"""A small subset for pytest-benchmark: pytest bench --benchmark-autosave, then --benchmark-compare."""

import pytest
from lconv_fast_bench.cases import SMALL
from lconv_fast_bench.contenders import Contender, numbers_of, with_numbers
from lconv_fast_bench.measure import OPERATORS, job


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("case", [SMALL[0], SMALL[2], SMALL[7]], ids=str)
def test_speed(benchmark, case, operator):
    generators = case.generators()
    numbers = numbers_of(case, generators)
    x, weight, g = case.tensors()
    benchmark(job(operator, Contender("lconv_fast", with_numbers(case, generators)), x, weight, numbers, g))
