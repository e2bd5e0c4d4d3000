//! Models that are computed as they are read.
