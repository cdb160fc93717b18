//! What should boot where: identities, jobs, the table that decides, and the scripts that say it to iPXE.

#[forbid(unsafe_code)]
pub mod admission;
#[forbid(unsafe_code)]
pub mod answers;
#[forbid(unsafe_code)]
pub mod book;
#[forbid(unsafe_code)]
pub mod claim;
#[forbid(unsafe_code)]
pub mod evidence;
#[forbid(unsafe_code)]
pub mod gss;
#[forbid(unsafe_code)]
pub mod identity;
#[forbid(unsafe_code)]
pub mod image;
#[forbid(unsafe_code)]
pub mod job;
#[forbid(unsafe_code)]
pub mod lifecycle;
#[forbid(unsafe_code)]
pub mod machine;
#[forbid(unsafe_code)]
pub mod reach;
#[forbid(unsafe_code)]
pub mod rule;
#[forbid(unsafe_code)]
pub mod script;
pub mod table;
#[forbid(unsafe_code)]
pub mod template;
#[forbid(unsafe_code)]
pub mod token;

pub use identity::Identity;
pub use image::Image;
