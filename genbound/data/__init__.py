"""A sample's way from a data SPEC to a batch."""
