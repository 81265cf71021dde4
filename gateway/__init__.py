"""The REST gateway: OpenAI's API in front of the verifiers."""
