//! What can be served right now, as one immutable value, and the only place where a client's name becomes a file.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::files::details::{Details, Shown};
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
    /// In the order of `images`.
    details: Vec<Details>,
    by_name: HashMap<String, usize>,
    payload: NameTable<Arc<Served>>,
    loaders: LoaderTable,
}

impl Catalog {
    /// From images, what is known of each, and payload, all in name order, and the loader table.
    pub(crate) fn new(
        images: Vec<Arc<Image>>,
        details: Vec<Details>,
        payload: Vec<Arc<Served>>,
        loaders: LoaderTable,
    ) -> Self {
        let by_name = images.iter().enumerate().map(|(index, image)| (image.name.clone(), index)).collect();
        let payload = NameTable::new(payload.into_iter().map(|served| (served.name.clone(), served)));
        Self { images, details, by_name, payload, loaders }
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

    /// The same, where there is a choice: the first of `named` that is there and fits, else the one after `pass_over`
    /// others.
    pub fn loader_wished<'n>(
        &self,
        arch: Arch,
        named: impl IntoIterator<Item = &'n str>,
        pass_over: u8,
    ) -> Option<&str> {
        let family = Family::of(arch)?;
        let named = named.into_iter().find_map(|name| self.loaders.named(name, family));
        let loader = named.or_else(|| self.loaders.for_family_after(family, pass_over))?;
        Some(&loader.served.name)
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

    /// An image with all that lists show of it.
    pub fn shown(&self, name: &str) -> Option<Shown<'_>> {
        let index = *self.by_name.get(name)?;
        Some(Shown { image: self.images.get(index)?, details: self.details.get(index)? })
    }

    /// Every image in name order, with all that lists show of it.
    pub fn shown_list(&self) -> impl Iterator<Item = Shown<'_>> {
        self.images.iter().zip(&self.details).map(|(image, details)| Shown { image, details })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::library::Library;
    use crate::files::library::test_site::{SMALL_WIM, Site};
    use crate::files::sniff::samples;

    /// An image with hidden neighbours, loaders for three families, a signed folder, and a secret outside.
    fn site() -> (Site, Library) {
        let site = Site::new();
        for name in ["image.toml", ".hidden", "private/key", "unattend.xml.tmpl", "Boot/.x"] {
            site.write(&format!("images/pe/{name}"), b"");
        }
        site.write("images/pe/boot.wim", SMALL_WIM);
        site.write("images/pe/Boot/BCD", b"bcd");
        site.write("images/pe/X64/bstrap.0", b"the image's own");
        site.write("images/pe/a file.txt", b"x");
        site.write("images/stray.txt", b"x");
        site.write("secret", b"x");
        site.write("loaders/undionly.kpxe", b"bios");
        site.write("loaders/snponly.efi", &samples::efi(0x8664));
        site.write("loaders/ipxe.efi", &samples::efi(0x8664));
        site.write("loaders/snponly-arm64.efi", &samples::efi(0xaa64));
        site.write("loaders/shimx64.efi", &samples::efi(0x8664));
        site.write("loaders/sb/ipxe.efi", b"signed");
        site.write("loaders/sb/ipxe-shim.efi", b"shim");
        site.write("loaders/.hidden.efi", b"x");
        let library = site.library();
        (site, library)
    }

    fn tftp(catalog: &Catalog, name: &str, arch: Option<Arch>) -> Option<String> {
        match catalog.tftp(name.as_bytes(), arch) {
            Ok(TftpTarget::File(served)) => Some(format!("file {}", served.name)),
            Ok(TftpTarget::Loader(served)) => Some(format!("loader {}", served.name)),
            Ok(TftpTarget::Autoexec) => Some("autoexec".into()),
            Err(_) => None,
        }
    }

    #[test]
    fn case_backslashes_and_doubled_slashes_do_not_matter() {
        let (_site, library) = site();
        let catalog = library.load();
        for name in [
            "pe/Boot/BCD",
            "/pe/Boot/BCD",
            "PE\\boot\\bcd",
            "\\pe/BOOT\\BCD",
            "pe//Boot///BCD",
            "//pe/boot/bcd",
        ] {
            assert_eq!(catalog.http_image(name).unwrap().name, "pe/Boot/BCD", "{name}");
            assert_eq!(tftp(&catalog, name, None).as_deref(), Some("file pe/Boot/BCD"), "{name}");
            let below_images = format!("/Images/{name}");
            assert_eq!(tftp(&catalog, &below_images, None).as_deref(), Some("file pe/Boot/BCD"), "{name}");
        }
        assert_eq!(catalog.http_image("pe/a file.txt").unwrap().len, 1);
    }

    #[test]
    fn no_spelling_leaves_the_library() {
        let (site, library) = site();
        let catalog = library.load();
        let absolute = site.path().join("secret").to_str().unwrap().to_owned();
        for name in [
            "../secret",
            "..\\secret",
            "pe/../../secret",
            "pe/..\\..\\secret",
            "pe\\..\\..\\secret",
            "/../secret",
            "//../secret",
            "pe/./../../secret",
            "pe/.../secret",
            "pe/.. /../secret",
            "images/../secret",
            "images/pe/../../../secret",
            "loaders/../secret",
            "C:/secret",
            "c:\\secret",
            "pe/C:/secret",
            "pe/boot.wim/../../../secret",
            "pe/boot.wim\0.txt",
            "secret\0",
            "pe/%2e%2e/%2e%2e/secret",
            "\u{2025}/secret",
            "stray.txt",
            "images/stray.txt",
            "pe",
            "pe/",
            "pe/Boot",
            "",
            "/",
            ".",
            &absolute,
        ] {
            assert!(catalog.http_image(name).is_err(), "{name:?}");
            assert!(catalog.loader(name).is_err(), "{name:?}");
            for arch in [None, Some(Arch::UEFI_X64)] {
                assert_eq!(tftp(&catalog, name, arch), None, "{name:?}");
            }
        }
        assert!(catalog.tftp(b"pe/\xff/../boot.wim", None).is_err());
        assert!(catalog.tftp(&[b'a'; 5000], None).is_err());
    }

    #[test]
    fn hidden_files_are_not_served_by_any_way() {
        let (_site, library) = site();
        let catalog = library.load();
        for name in [
            "image.toml",
            "IMAGE.TOML",
            ".hidden",
            "private/key",
            "Private\\key",
            "unattend.xml.tmpl",
            "Boot/.x",
            "boot/.X",
        ] {
            let name = format!("pe/{name}");
            assert_eq!(catalog.http_image(&name).unwrap_err(), NotServed::Hidden, "{name}");
            assert_eq!(tftp(&catalog, &name, None), None, "{name}");
            assert_eq!(tftp(&catalog, &format!("images/{name}"), None), None, "{name}");
        }
        assert_eq!(catalog.loader(".hidden.efi").unwrap_err(), NotServed::Hidden);
    }

    #[test]
    fn loaders_are_chosen_by_architecture() {
        let (_site, library) = site();
        let catalog = library.load();
        let name = |arch| catalog.loader_for(arch).map(|(name, _)| name.to_owned());
        assert_eq!(name(Arch::BIOS).as_deref(), Some("undionly.kpxe"));
        for arch in [Arch::UEFI_X64, Arch::UEFI_EBC, Arch::HTTP_X64] {
            assert_eq!(name(arch).as_deref(), Some("snponly.efi"));
        }
        assert_eq!(name(Arch::UEFI_ARM64).as_deref(), Some("snponly-arm64.efi"));
        assert_eq!(name(Arch::UEFI_IA32), None);
        assert_eq!(name(Arch(0x1b)), None);
    }

    #[test]
    fn a_loader_of_another_processor_is_passed_over() {
        let site = Site::new();
        site.write("loaders/snponly.efi", &samples::efi(0x014c));
        site.write("loaders/ipxe.efi", &samples::efi(0x8664));
        let library = site.library();
        assert_eq!(library.load().loader_for(Arch::UEFI_X64).unwrap().0, "ipxe.efi");
    }

    #[test]
    fn an_ipxe_without_http_gets_an_ipxe_even_where_a_shim_is_preferred() {
        let (site, _) = site();
        let mut settings = site.settings();
        settings.uefi_x64 = vec!["shimx64.efi".into(), "sb/ipxe-shim.efi".into()];
        let library = Library::open(settings).unwrap();
        assert_eq!(library.load().loader_for(Arch::UEFI_X64).unwrap().0, "shimx64.efi");
        assert_eq!(library.load().full_loader_for(Arch::UEFI_X64).unwrap().0, "ipxe.efi");
        assert_eq!(library.load().full_loader_for(Arch::BIOS).unwrap().0, "undionly.kpxe");
        assert!(library.load().full_loader_for(Arch::UEFI_IA32).is_none());
    }

    #[test]
    fn a_loader_name_gives_the_loader_this_machine_should_get() {
        let (_site, library) = site();
        let catalog = library.load();
        let (bios, x64, arm) = (Some(Arch::BIOS), Some(Arch::UEFI_X64), Some(Arch::UEFI_ARM64));
        for (name, arch, expected) in [
            // By the name alone.
            ("zipxe.0", None, Some("loader undionly.kpxe")),
            ("/IPXE64.EFI", None, Some("loader snponly.efi")),
            ("ipxe32.efi", None, None),
            // In a folder that has no such file, and in one that has.
            ("MenuOption128/X64/ipxe64.efi", None, Some("loader snponly.efi")),
            ("pe\\X64\\ipxe64.efi", None, Some("loader snponly.efi")),
            ("pe/X64/bstrap.0", x64, Some("file pe/X64/bstrap.0")),
            ("pe/bstrap.0", None, Some("loader undionly.kpxe")),
            // The machine counts for more than the name.
            ("undionly.kpxe", x64, Some("loader snponly.efi")),
            ("ipxe.efi", bios, Some("loader undionly.kpxe")),
            ("bstrap.efi", arm, Some("loader snponly-arm64.efi")),
            ("ipxe64.efi", Some(Arch::UEFI_IA32), None),
            // The very file, when it is there and fits.
            ("ipxe.efi", x64, Some("loader ipxe.efi")),
            ("loaders/snponly.efi", x64, Some("loader snponly.efi")),
            ("sb/ipxe.efi", x64, Some("loader sb/ipxe.efi")),
            ("loaders/sb/ipxe-shim.efi", None, Some("loader sb/ipxe-shim.efi")),
            ("shimx64.efi", x64, Some("loader shimx64.efi")),
            // Never in place of these.
            ("grubx64.efi", x64, None),
            ("sb/shimx64.efi", x64, None),
            ("mmx64.efi", x64, None),
            ("revocations_sku.efi", x64, None),
            ("pxelinux.cfg/default", bios, None),
            ("boot\\fonts\\segoe.ttf", x64, None),
        ] {
            assert_eq!(tftp(&catalog, name, arch).as_deref(), expected, "{name} {arch:?}");
        }
    }

    #[test]
    fn autoexec_is_the_same_script_in_every_folder() {
        let (_site, library) = site();
        let catalog = library.load();
        for name in ["autoexec.ipxe", "/AutoExec.iPXE", "pe/autoexec.ipxe", "a\\b\\autoexec.ipxe"] {
            assert_eq!(tftp(&catalog, name, None).as_deref(), Some("autoexec"), "{name}");
        }
        assert_eq!(tftp(&catalog, "../autoexec.ipxe", None), None);
        assert_eq!(tftp(&catalog, "xautoexec.ipxe", None), None);
    }

    #[test]
    fn what_is_public_about_a_file_holds_no_local_path() {
        let (site, library) = site();
        let local = site.path().to_str().unwrap().to_owned();
        let catalog = library.load();
        for served in catalog.payload_files() {
            assert!(!served.name.contains(&local) && !served.etag.contains(&local));
        }
        for image in catalog.list() {
            assert!(!format!("{image:?}").contains(&local));
        }
    }
}
