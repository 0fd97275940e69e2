"""What the algorithm is compared with, and other regularisers: mixup, noise on the weights, adapters of low rank."""
