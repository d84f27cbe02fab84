"""The GPU kernels alone, next to the device's own ceilings of the same minute."""
