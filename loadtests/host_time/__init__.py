"""What a round costs the host: real engines of both services, without their forwards."""
