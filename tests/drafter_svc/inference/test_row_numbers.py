from drafter_svc.inference.row_numbers import RowNumbers


def test_the_least_number_that_nobody_has_is_handed_out() -> None:
    numbers = RowNumbers()
    assert [numbers.take() for _ in range(4)] == [0, 1, 2, 3]
    for number in (2, 0):
        numbers.give(number)
    assert [numbers.take() for _ in range(3)] == [0, 2, 4]
