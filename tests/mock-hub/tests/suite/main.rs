//! The mock, asked over its sockets.

mod client;
mod faults;
mod reading;
mod upload;
mod writing;
