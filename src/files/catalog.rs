//! What can be served right now, as one immutable value, and the only place where a client's name becomes a file.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::files::loaders::{Family, LoaderTable, NameTable};
use crate::files::names::{self, BadName};
use crate::files::served::Served;
use crate::jobs::image::{Image, Images};
use crate::wire::Arch;

/// Why a name gives no file. Every reason looks alike to the client: not found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotServed {
    /// Not in the catalogue.
    NotFound,
    /// Not a name at all; it may have been an attempt to leave the folders.
    BadName(BadName),
    /// A name that is never payload (`image.toml`, dot files, templates, `private/`), whether it exists or not.
    Hidden,
}

impl fmt::Display for NotServed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not in the catalogue",
            Self::BadName(_) => "not a name the catalogue could hold",
            Self::Hidden => "never served under this name",
        })
    }
}

impl std::error::Error for NotServed {}

impl From<BadName> for NotServed {
    fn from(why: BadName) -> Self {
        Self::BadName(why)
    }
}

/// What a TFTP name stands for.
#[derive(Clone, Debug)]
pub enum TftpTarget {
    /// An image's file. Its `access` still has to be looked at.
    File(Arc<Served>),
    /// A loader: the named one, or the one this machine should get under that name.
    Loader(Arc<Served>),
    /// The constant script that asks for the machine's own one.
    Autoexec,
}

/// A snapshot of the library. Cheap to look things up in, never changed: a scan makes the next one.
#[derive(Debug)]
pub struct Catalog {
    images: Vec<Arc<Image>>,
    by_name: HashMap<String, usize>,
    payload: NameTable<Arc<Served>>,
    loaders: LoaderTable,
}

impl Catalog {
    /// From images and payload, both in name order, and the loader table.
    pub(crate) fn new(images: Vec<Arc<Image>>, payload: Vec<Arc<Served>>, loaders: LoaderTable) -> Self {
        let by_name = images.iter().enumerate().map(|(index, image)| (image.name.clone(), index)).collect();
        let payload = NameTable::new(payload.into_iter().map(|served| (served.name.clone(), served)));
        Self { images, by_name, payload, loaders }
    }

    /// A payload file by `NAME/FILE`: the part after `/images/`, percent-decoding done. Case, backslashes and doubled
    /// slashes do not matter. The caller looks at [`Served::access`] before it hands the file out.
    ///
    /// # Errors
    /// [`NotServed`]; all of it is "not found" to the client.
    pub fn http_image(&self, path: &str) -> Result<Arc<Served>, NotServed> {
        self.payload(&names::normalise(path)?)
    }

    /// A loader folder's file by its name: the part after `/loaders/`. Exactly that file or none.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn loader(&self, name: &str) -> Result<Arc<Served>, NotServed> {
        let name = names::normalise(name)?;
        if names::is_hidden(&name) {
            return Err(NotServed::Hidden);
        }
        self.loaders.find(&name).map(|loader| Arc::clone(&loader.served)).ok_or(NotServed::NotFound)
    }

    /// The loader for a machine of this architecture: the first of the configured ones that exists. `None` when there
    /// is none, or no list for such machines.
    pub fn loader_for(&self, arch: Arch) -> Option<(&str, Arc<Served>)> {
        let loader = self.loaders.for_family(Family::of(arch)?)?;
        Some((&loader.served.name, Arc::clone(&loader.served)))
    }

    /// The full iPXE for a machine that already runs one without HTTP (no 175.19): never a shim or another loader.
    pub fn full_loader_for(&self, arch: Arch) -> Option<(&str, Arc<Served>)> {
        let loader = self.loaders.ipxe_for_family(Family::of(arch)?)?;
        Some((&loader.served.name, Arc::clone(&loader.served)))
    }

    /// What a TFTP request for `name` gets. `arch_hint` is what DHCP learned of this machine, if anything.
    ///
    /// In order: `autoexec.ipxe` in any folder; `images/NAME/FILE` or `NAME/FILE`; a file of the loader folders
    /// (`loaders/NAME` or `NAME`) that is not one of the interchangeable loader names; a loader name in any folder.
    ///
    /// # Errors
    /// [`NotServed`]; all of it is ERROR 1 "file not found", at once.
    pub fn tftp(&self, name: &[u8], arch_hint: Option<Arch>) -> Result<TftpTarget, NotServed> {
        let name = names::normalise_bytes(name)?;
        if names::base(&name).eq_ignore_ascii_case("autoexec.ipxe") {
            return Ok(TftpTarget::Autoexec);
        }
        if let Some(served) = below(&name, "images").and_then(|rest| self.payload(rest).ok()) {
            return Ok(TftpTarget::File(served));
        }
        match self.payload(&name) {
            Ok(served) => return Ok(TftpTarget::File(served)),
            Err(NotServed::NotFound) => {}
            Err(why) => return Err(why),
        }
        let plain = below(&name, "loaders").unwrap_or(&name);
        if let Some(loader) = self.loaders.for_name(plain, arch_hint).filter(|_| !plain.contains('/')) {
            return Ok(TftpTarget::Loader(Arc::clone(&loader.served)));
        }
        // A folder below the loader folders holds one signing generation or one architecture (`x86_64-sb/ipxe.efi`
        // beside its shim): what is named there is meant to the letter.
        let exact = self
            .loaders
            .find(plain)
            .filter(|_| plain.contains('/') || crate::files::loaders::family_of_name(plain).is_none());
        let loader = exact.or_else(|| self.loaders.for_name(&name, arch_hint)).ok_or(NotServed::NotFound)?;
        Ok(TftpTarget::Loader(Arc::clone(&loader.served)))
    }

    /// The loader table.
    pub fn loaders(&self) -> &LoaderTable {
        &self.loaders
    }

    /// Every payload file, in no order.
    pub fn payload_files(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.payload.values()
    }

    fn payload(&self, name: &str) -> Result<Arc<Served>, NotServed> {
        if names::is_hidden(name) {
            return Err(NotServed::Hidden);
        }
        self.payload.find(name).cloned().ok_or(NotServed::NotFound)
    }
}

/// The rest of a normalised name below a first step.
fn below<'n>(name: &'n str, first: &str) -> Option<&'n str> {
    let (step, rest) = name.split_once('/')?;
    step.eq_ignore_ascii_case(first).then_some(rest)
}

impl Images for Catalog {
    fn image(&self, name: &str) -> Option<&Image> {
        self.images.get(*self.by_name.get(name)?).map(Arc::as_ref)
    }

    fn list(&self) -> &[Arc<Image>] {
        &self.images
    }
}
