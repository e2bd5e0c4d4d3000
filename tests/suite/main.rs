//! The suite of the whole: the binary, run as a user runs it, on the trained tiny models of this repository.

mod bad_input;
mod calibrate;
mod check;
mod compressed;
mod convert;
mod crash;
mod fit;
#[cfg(feature = "gpu")]
mod gpu;
mod hub;
mod imatrix;
mod linears;
mod publish;
mod quantize;
mod recipe;
mod same_bytes;
mod targets;
mod tool;
mod verify;
