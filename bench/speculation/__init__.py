"""What speculation is worth on the CPU: see bench/README.md."""
