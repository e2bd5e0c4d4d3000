//! The job: which tensor becomes what, and the streaming pass that does it.
