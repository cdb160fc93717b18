//! One core, one loop: every core has its own sockets, transfers, connections, deadlines and counters, and answers
//! a request on the core it arrived on from start to end. One of them owns DHCP as well.
//!
//! mio is the loop; the core's io_uring, where there is one, is a sender inside it and one more readable descriptor.
//! Without it the same loop runs with fewer senders. What cores share is read, never locked: see [`shared`].
//!
//! Start reading at [`core`] (the turn), then [`tftp`], [`http`] and [`dhcp`] (what happens in it), [`start`] (how it
//! comes to be).
#![forbid(unsafe_code)]

pub(crate) mod core;
pub mod counters;
mod dhcp;
pub mod filters;
pub mod fragments;
mod http;
mod native;
mod policy;
pub mod presented;
mod probe;
mod readers;
mod sender;
pub mod shared;
pub mod sightings;
pub mod slab;
pub mod start;
#[cfg(test)]
mod tests;
mod tftp;
pub mod wheel;

pub use shared::{Shared, Tuning};
pub use start::{Bound, DRAIN, Driver, Engine, EngineSettings, Frames, Ground, StartError, ZeroCopy};
