"""What `bench.simulate` is made of: workloads, figures, reports and plots."""
