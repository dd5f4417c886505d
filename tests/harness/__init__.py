"""What end-to-end tests, the demo and the benchmarks share: text to train on, an installed Trainyard, jobs to watch."""
