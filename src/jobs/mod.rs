//! What should boot where: identities, jobs, the table that decides, and the scripts that say it to iPXE.
#![forbid(unsafe_code)]

pub mod answers;
pub mod book;
pub mod evidence;
pub mod identity;
pub mod image;
pub mod job;
pub mod script;
pub mod table;
pub mod template;
pub mod token;

pub use identity::Identity;
pub use image::Image;
