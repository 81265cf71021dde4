"""gRPC in and out: calls are decoded, checked, handed to the engine, and answered."""
