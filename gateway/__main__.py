"""`python -m gateway`."""

import os
import sys

# grpc reads it when it is imported. Its own lines are no JSON, and what they tell comes as errors.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from gateway.server import main

sys.exit(main())
