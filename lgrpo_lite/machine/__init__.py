"""This machine: GPU, memory, disk, packages, the Hub, and what is wrong with any of them."""
