//! What can be served: image folders recognised, names made safe, files opened and mapped.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod detect;
pub mod library;
pub mod wim;
