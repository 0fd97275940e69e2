"""Fine-tuning for the sake of its certificate: prior, radius, trained part and noise are chosen so that it is small."""
