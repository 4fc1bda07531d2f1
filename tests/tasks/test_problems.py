import pickle

import pytest

from nova_jax.tasks import problems


def test_a_problem_is_one_sentence():
    assert str(problems.Problem("seed", "-1", "0 or more")) == "seed is -1; it must be 0 or more."


def test_the_error_has_a_line_for_each_problem_and_keeps_them():
    found = [problems.Problem("a", "1", "2"), problems.Problem("b", "3", "4")]
    with pytest.raises(ValueError, match=r"^a is 1; it must be 2\.\nb is 3; it must be 4\.$") as caught:
        problems.refuse(iter(found))
    assert caught.value.problems == tuple(found)
    problems.refuse([])


def test_the_error_travels_between_processes():
    error = problems.InvalidRequest([problems.Problem("a", "1", "2")])
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.problems, str(copy)) == (error.problems, str(error))
