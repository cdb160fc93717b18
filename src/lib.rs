//! bootstorm: a network boot server.
//!
//! A machine's boot passes through these rooms, and each does one thing:
//!
//! ```text
//!            wire          bytes <-> values                      (no I/O, no clock, no heap while parsing)
//!             |
//!            jobs          what should boot where: machines, jobs, scripts     (pure)
//!             |
//!            proto         DHCP, TFTP, HTTP as machines driven by (now, input) (pure)
//!             |
//!  files -- engine -- sys  one pinned core, one loop; sockets, rings, mappings live in `sys`
//!             |
//!  control  config  history  store  telemetry  cli      the slow side: admin API, timelines, what lasts, commands
//!
//!  client   bench          firmware machines and load generators; they share `wire` and nothing of the engine
//! ```
//!
//! `tests/tidy.rs` holds the table of who may import whom. Start reading at [`engine`] for the data path, at
//! [`proto`] for the decisions, at [`jobs`] for what a machine gets.

pub mod bench;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod doctor;
pub mod engine;
pub mod files;
pub mod history;
pub mod jobs;
pub mod keeper;
pub mod proto;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod wire;
