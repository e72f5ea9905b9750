"""How numbers get from the device to the host: one transfer a measured step."""
