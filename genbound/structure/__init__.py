"""How a network is composed of its layers, and their operators: what the competing bounds need."""
