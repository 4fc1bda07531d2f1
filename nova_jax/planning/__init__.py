"""What a program would cost on hardware that is not here: compiled, read, and held against the hardware's limits.

program     kernels of a compiled program, bytes that they move, products that they compute
hardware    chips with their declared limits, and devices to compile for
"""
