//! What can be served: image folders recognised, names made safe, files opened and mapped.
//!
//! Start at [`library::Library`], which scans folders into an immutable [`catalog::Catalog`]. A name from the network
//! becomes a file in one place only, the catalogue's look-ups: they search tables filled by the scan and never touch
//! the file system, so nothing that was not listed can be named. How files get into the folders: [`intake`] takes them
//! in, [`versions`] puts them in place and keeps what was there before, [`verify`] reads them again.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod details;
pub mod detect;
pub mod gss;
pub mod intake;
pub mod library;
pub mod loader_facts;
pub mod loaders;
pub mod make;
pub mod manifest;
pub mod names;
pub mod record;
pub mod scan;
pub mod served;
mod sha1;
pub mod sniff;
pub mod tree;
pub mod verify;
pub mod versions;
mod visit;
pub mod watch;
pub mod wim;
pub mod wim_write;

pub use catalog::{Catalog, NotServed, TftpTarget};
pub use library::{Library, LibraryError, Settings};
pub use served::{Handle, Opened, Served};
