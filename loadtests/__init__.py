"""Load and measure a running stack through its REST interface."""

from specwire.packages import explain_missing

explain_missing()
