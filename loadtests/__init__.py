"""Load and measure a running stack through its REST interface."""
