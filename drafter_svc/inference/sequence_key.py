"""What names a sequence inside a drafter. Pure."""

#: A sequence among all verifiers: link id and sequence id.
Key = tuple[int, int]
