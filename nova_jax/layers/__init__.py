"""The parts networks are built of: linear layers, attention, rotary embedding, modulation, convolution, depth."""
