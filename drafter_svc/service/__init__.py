"""gRPC in and out, and the drafter inside a verifier's process."""
