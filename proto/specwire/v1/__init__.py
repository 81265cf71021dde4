"""Generated protobuf code of `specwire.v1`."""
