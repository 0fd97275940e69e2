"""All that a weight file passes through until it is a pair of aligned weights with an architecture."""
