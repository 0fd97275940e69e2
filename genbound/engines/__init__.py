"""Where the parts of a measurement are computed: in this process, by ranks of torch.distributed, by actors of Ray."""
