//! TFTP for machines whose job boots an image's own program, without iPXE: what their names mean, and where their point
//! of no return lies.
//!
//! Windows' boot manager asks for `\Boot\BCD` and means the folder its program came from, which only this server knows.
//! The machine is the one that DHCP last saw at the address, which is a hint: it finds names among files that anybody
//! may have, and it takes away.

use std::net::Ipv4Addr;

use super::shared::Shared;
use super::sightings::Sighting;
use crate::files::catalog::{Catalog, NotServed, TftpTarget};
use crate::files::gss::file_of_native;
use crate::files::loaders::family_of_name;
use crate::files::names;
use crate::jobs::Identity;
use crate::jobs::gss::{self, Native};
use crate::jobs::image::Image;
use crate::jobs::script::{Barrier, barrier};
use crate::jobs::table::Decision;
use crate::wire::arch::Family;

/// Whom a sighting is of.
pub(super) fn identity_of(seen: Sighting, address: Ipv4Addr) -> Identity {
    Identity { mac: Some(seen.mac), arch: Some(seen.arch), address: Some(address), ..Identity::default() }
}

/// What a TFTP name means for the machine at `client`.
///
/// # Errors
/// [`NotServed`]; all of it is "file not found" to the client.
pub(super) fn target(
    shared: &Shared,
    catalog: &Catalog,
    name: &[u8],
    client: Ipv4Addr,
) -> Result<TftpTarget, NotServed> {
    let seen = shared.sightings.at(client);
    let found = catalog.tftp(name, seen.map(|seen| seen.arch));
    let Some(seen) = seen.filter(|_| matches!(found, Ok(TftpTarget::Loader(_)) | Err(NotServed::NotFound)))
    else {
        return found;
    };
    let view = shared.keeper.table().view();
    // A boot that has passed goes on with its own files; what it is given to start with is for live jobs.
    let (job, is_live) = match view.decide(&identity_of(seen, client)) {
        Decision::Job(job) => (job, true),
        Decision::Done(job) => (job, false),
        Decision::Rejected | Decision::NoJob => return found,
    };
    let program = Family::of(seen.arch).and_then(|family| gss::program_of(job, catalog, family));
    let Some((image, native)) = program else { return found };
    let Ok(plain) = names::normalise_bytes(name) else { return found };
    // The loader this machine should get is its program, whatever name an old DHCP scope has for it.
    let is_loader = family_of_name(&plain).is_some() && !is_meant_to_the_letter(catalog, &plain);
    let program = || catalog.http_image(&format!("{}/{}", image.name, native.program)).ok();
    let file = match &found {
        _ if is_loader && is_live => program(),
        Ok(_) => None,
        Err(_) if is_loader => None,
        Err(_) => file_of_native(catalog, image, native, &plain),
    };
    file.map_or(found, |served| Ok(TftpTarget::File(served)))
}

/// A loader in a folder of the loader folders: one architecture's or one signed chain's.
fn is_meant_to_the_letter(catalog: &Catalog, name: &str) -> bool {
    let below = name.split_once('/').filter(|(step, _)| step.eq_ignore_ascii_case("loaders"));
    let name = below.map_or(name, |(_, rest)| rest);
    name.contains('/') && catalog.loader(name).is_ok()
}

/// Whether the end of `file` is the point of no return of a machine that boots this image by TFTP.
pub(super) fn is_the_line(image: &Image, family: Option<Family>, file: &str) -> bool {
    match family.and_then(|family| image.native_for(family)) {
        Some(native) => native.last == file,
        None => barrier(image) == Some(Barrier::File(file)),
    }
}

/// Whether `file` is the last of some machine's boot without iPXE, and wipes: given only to a machine whose DHCP was
/// seen, or nothing could hold it at the point of no return.
pub(super) fn needs_a_sighting(image: &Image, file: &str) -> bool {
    let is_last = |native: &Native| native.last == file;
    image.destructive && image.gss.as_ref().is_some_and(|gss| gss.native.iter().any(is_last))
}
