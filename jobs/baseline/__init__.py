"""`mibf baseline`: learners that train in seconds, on the samples and split of a run, next to its trained model."""
