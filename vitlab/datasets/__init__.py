"""A named data set -> batches on the device."""
