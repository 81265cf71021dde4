"""Training of EAGLE-3.1 drafters; never imported by serving."""

from specwire.packages import explain_missing

explain_missing()
