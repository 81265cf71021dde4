"""The environment in which the services' OpenMP threads run."""

from __future__ import annotations

from deploy.local.openmp_env import with_threads


def test_teams_of_all_cores_are_bound_to_them() -> None:
    told = with_threads({"HOME": "/"})
    assert (told["OMP_PROC_BIND"], told["OMP_PLACES"]) == ("close", "cores")
    assert (told["OMP_WAIT_POLICY"], told["GOMP_SPINCOUNT"]) == ("ACTIVE", "10000")
    assert told["HOME"] == "/"


def test_smaller_teams_are_free() -> None:
    assert "OMP_PROC_BIND" not in with_threads({"OMP_NUM_THREADS": "1"})


def test_what_is_set_already_wins() -> None:
    told = with_threads({"OMP_PROC_BIND": "false", "GOMP_SPINCOUNT": "1"})
    assert (told["OMP_PROC_BIND"], told["GOMP_SPINCOUNT"]) == ("false", "1")
