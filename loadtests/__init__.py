"""Load and measure a running stack through its REST interface."""

from specserve.packages import explain_missing

explain_missing()
