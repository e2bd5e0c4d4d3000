//! The Hub's client against a real server on loopback, which does wrong what it is told to.

mod fetch;
mod names;
mod publish;
mod setting;
mod stream;
