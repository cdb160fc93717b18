//! One core, one loop.
#![forbid(unsafe_code)]
pub mod filters;
pub mod sightings;
pub mod slab;
pub mod wheel;
