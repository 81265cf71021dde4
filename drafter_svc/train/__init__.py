"""Training of EAGLE-3.1 drafters; never imported by serving."""

from specserve.packages import explain_missing

explain_missing()
