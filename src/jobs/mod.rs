//! What should boot where: identities, jobs, the table that decides, and the scripts that say it to iPXE.
#![forbid(unsafe_code)]

pub mod book;
pub mod evidence;
pub mod identity;
pub mod image;
pub mod job;
pub mod machine;
pub mod rule;
pub mod script;
pub mod table;
pub mod token;

pub use identity::Identity;
pub use image::Image;
