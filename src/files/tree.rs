//! Trees of distributions and installers, known by which files lie where, with the arguments each needs to find the
//! rest of itself over HTTP.
//!
//! | tree | known by | what it is told |
//! |---|---|---|
//! | Ubuntu and its kin (casper) | `casper/vmlinuz`, `casper/initrd` | `boot=casper url=` the ISO in the folder |
//! | Debian live | `live/vmlinuz`, `live/*.squashfs` | `boot=live components fetch=` the file system |
//! | Debian installer | `debian-installer/ARCH/linux` | nothing: it asks a mirror |
//! | Fedora, RHEL and their kin | `images/pxeboot/vmlinuz` | `inst.repo=`, `inst.stage2=`, or `root=live:` |
//! | SUSE | `boot/ARCH/loader/linux` | `install=` the folder |
//! | Arch | `arch/boot/ARCH/vmlinuz-linux` | `archiso_http_srv=` the folder |
//! | Alpine | `boot/vmlinuz-FLAVOUR`, `boot/modloop-FLAVOUR` | `modloop=`, `alpine_repo=` |
//! | ESXi | `boot.cfg` beside an EFI `mboot` | `-c` its `boot.cfg` |
//!
//! The arguments are those of each project's own documentation of network boots; which of them a tree was tested with is
//! in docs/LOADERS.md.

use crate::files::names::folded;
use crate::jobs::image::UrlArg;

/// A tree as recognised.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    /// Whose.
    pub what: &'static str,
    /// The kernel, or the EFI program of a tree without one.
    pub program: String,
    /// Its initrds.
    pub initrds: Vec<String>,
    /// Arguments that are the same everywhere.
    pub args: Vec<&'static str>,
    /// Arguments that name files of the tree.
    pub url_args: Vec<UrlArg>,
    /// What will not work as it lies.
    pub warnings: Vec<String>,
    /// The program is an EFI program and no kernel.
    pub is_efi: bool,
}

/// A listing that is asked for names regardless of case.
struct Listing<'a>(&'a [&'a str]);

impl<'a> Listing<'a> {
    fn find(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|file| folded(file) == name).copied()
    }

    /// The first whose name begins and ends so, with the shortest name before others.
    fn like(&self, begin: &str, end: &str) -> Option<&'a str> {
        let fits = |file: &&&str| {
            let file = folded(file);
            file.len() >= begin.len() + end.len() && file.starts_with(begin) && file.ends_with(end)
        };
        self.0.iter().filter(fits).min_by_key(|file| (file.len(), **file)).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

fn url(word: &str, file: &str) -> UrlArg {
    UrlArg { word: word.to_owned(), file: file.to_owned() }
}

/// Recognises a tree from the names of its files, `/`-separated below the image's folder.
pub fn of(files: &[&str]) -> Option<Tree> {
    let listing = Listing(files);
    [casper, debian_live, debian_installer, red_hat, suse, arch, alpine, esxi]
        .iter()
        .find_map(|is| is(&listing))
}

fn casper(files: &Listing<'_>) -> Option<Tree> {
    let kernel = files.find("casper/vmlinuz").or_else(|| files.like("casper/vmlinuz", ""))?;
    let initrd = files.like("casper/initrd", "")?;
    let mut tree = Tree {
        what: "Ubuntu live (casper)",
        program: kernel.to_owned(),
        initrds: vec![initrd.to_owned()],
        args: vec!["boot=casper", "ip=dhcp"],
        ..Tree::default()
    };
    match files.like("", ".iso") {
        Some(iso) => tree.url_args.push(url("url=", iso)),
        None => tree.warnings.push(
            "casper fetches the whole ISO by its url= argument: put the ISO into the folder, or name one in image.toml, \
             args"
                .to_owned(),
        ),
    }
    Some(tree)
}

fn debian_live(files: &Listing<'_>) -> Option<Tree> {
    let system = files.find("live/filesystem.squashfs").or_else(|| files.like("live/", ".squashfs"))?;
    let kernel = files.like("live/vmlinuz", "")?;
    // Kernel and initrd of one version carry it in both names.
    let version = kernel.rsplit_once("vmlinuz").map_or("", |(_, version)| version);
    let initrd = files
        .find(&folded(&format!("live/initrd.img{version}")))
        .or_else(|| files.like("live/initrd", ""))?;
    Some(Tree {
        what: "Debian live",
        program: kernel.to_owned(),
        initrds: vec![initrd.to_owned()],
        args: vec!["boot=live", "components"],
        url_args: vec![url("fetch=", system)],
        ..Tree::default()
    })
}

fn debian_installer(files: &Listing<'_>) -> Option<Tree> {
    let in_netboot = |arch: &str| {
        let kernel = files.find(&format!("debian-installer/{arch}/linux"))?;
        Some((kernel, files.find(&format!("debian-installer/{arch}/initrd.gz"))?, true))
    };
    let on_disc = |folder: &str| {
        let kernel = files.find(&format!("{folder}/vmlinuz"))?;
        Some((kernel, files.find(&format!("{folder}/initrd.gz"))?, false))
    };
    let (kernel, initrd, netboot) =
        ["amd64", "arm64", "i386"].iter().find_map(|arch| in_netboot(arch)).or_else(|| {
            ["install.amd", "install.a64", "install.386", "install"].iter().find_map(|f| on_disc(f))
        })?;
    let mut tree = Tree {
        what: "Debian installer",
        program: kernel.to_owned(),
        initrds: vec![initrd.to_owned()],
        ..Tree::default()
    };
    if !netboot {
        tree.warnings.push(
            "this initrd is the one of an installation disc and looks for that disc: take kernel and initrd of Debian's \
             netboot archive"
                .to_owned(),
        );
    }
    Some(tree)
}

fn red_hat(files: &Listing<'_>) -> Option<Tree> {
    let kernel = files.find("images/pxeboot/vmlinuz")?;
    let initrd = files.find("images/pxeboot/initrd.img")?;
    let mut tree = Tree {
        what: "Fedora or RHEL",
        program: kernel.to_owned(),
        initrds: vec![initrd.to_owned()],
        args: vec!["ip=dhcp"],
        ..Tree::default()
    };
    if let Some(live) = files.find("liveos/squashfs.img") {
        tree.args.push("rd.live.image");
        tree.url_args.push(url("root=live:", live));
        return Some(tree);
    }
    let packages = files.like("", "repodata/repomd.xml");
    if files.has("images/install.img") {
        tree.url_args.push(url("inst.stage2=", ""));
    } else {
        tree.warnings.push("images/install.img, the installer itself, is not in the folder".to_owned());
    }
    if let Some(packages) = packages {
        tree.url_args.push(url("inst.repo=", ""));
        // Names that begin with a dot are nobody's to ask for; the installer tries the other name too.
        if packages.contains("/repodata/") && !packages.starts_with("repodata/") && !files.has("treeinfo") {
            tree.warnings.push(
                "the installer finds its repositories by .treeinfo, and names that begin with a dot are not served: \
                 copy it to treeinfo"
                    .to_owned(),
            );
        }
    }
    Some(tree)
}

fn suse(files: &Listing<'_>) -> Option<Tree> {
    let kernel = files.like("boot/", "/loader/linux")?;
    let initrd = files.like("boot/", "/loader/initrd")?;
    Some(Tree {
        what: "SUSE",
        program: kernel.to_owned(),
        initrds: vec![initrd.to_owned()],
        url_args: vec![url("install=", "")],
        ..Tree::default()
    })
}

fn arch(files: &Listing<'_>) -> Option<Tree> {
    let kernel = files.like("arch/boot/", "/vmlinuz-linux")?;
    let initrd = files.like("arch/boot/", "/initramfs-linux.img")?;
    let microcode = ["amd-ucode.img", "intel-ucode.img"];
    let mut initrds: Vec<String> =
        microcode.iter().filter_map(|name| files.like("arch/boot/", name)).map(str::to_owned).collect();
    initrds.push(initrd.to_owned());
    Some(Tree {
        what: "Arch",
        program: kernel.to_owned(),
        initrds,
        args: vec!["archisobasedir=arch", "ip=dhcp"],
        url_args: vec![url("archiso_http_srv=", "")],
        ..Tree::default()
    })
}

fn alpine(files: &Listing<'_>) -> Option<Tree> {
    let modules = files.like("boot/modloop-", "")?;
    let flavour = folded(modules).strip_prefix("boot/modloop-")?.to_owned();
    let kernel = files.find(&format!("boot/vmlinuz-{flavour}"))?;
    let initrd = files.find(&format!("boot/initramfs-{flavour}"))?;
    let mut url_args = vec![url("modloop=", modules)];
    if files.like("apks/", "").is_some() {
        url_args.push(url("alpine_repo=", "apks"));
    }
    Some(Tree {
        what: "Alpine",
        program: kernel.to_owned(),
        initrds: vec![initrd.to_owned()],
        args: vec!["ip=dhcp"],
        url_args,
        ..Tree::default()
    })
}

fn esxi(files: &Listing<'_>) -> Option<Tree> {
    // Other things have a boot.cfg as well; these modules are the hypervisor.
    let is_esxi = files.has("b.b00") || files.has("k.b00") || files.has("s.v00");
    let config = files.find("boot.cfg").or_else(|| files.find("efi/boot/boot.cfg")).filter(|_| is_esxi)?;
    let program = ["mboot.efi", "efi/boot/mboot.efi", "efi/boot/bootx64.efi", "efi/boot/bootaa64.efi"];
    let program = program.iter().find_map(|name| files.find(name))?;
    Some(Tree {
        what: "ESXi",
        program: program.to_owned(),
        url_args: vec![url("-c ", config)],
        is_efi: true,
        ..Tree::default()
    })
}

/// What is wrong with an ESXi `boot.cfg` for a boot over the network: its names begin with a slash, which then means
/// the server's root.
pub fn boot_cfg_warning(text: &str) -> Option<String> {
    let rooted = text.lines().any(|line| {
        let value = line.split_once('=').filter(|(key, _)| matches!(key.trim(), "kernel" | "modules"));
        value.is_some_and(|(_, value)| value.split("---").any(|name| name.trim().starts_with('/')))
    });
    let prefixed = text.lines().any(|line| {
        line.split_once('=').is_some_and(|(key, value)| key.trim() == "prefix" && !value.trim().is_empty())
    });
    (rooted && !prefixed).then(|| {
        "boot.cfg names its modules by a leading slash, as on the disc: take the slashes away for a boot over the \
         network"
            .to_owned()
    })
}

/// The tree's arguments where the operator's own do not name the same thing: text, and URLs.
pub fn arguments(tree: &Tree, own: &str) -> (String, Vec<UrlArg>) {
    let key = |word: &str| word.split_once('=').map_or(word, |(key, _)| key).trim().to_owned();
    let named = |word: &str| own.split_whitespace().any(|own| key(own) == key(word));
    let words = tree.args.iter().copied().filter(|word| !named(word));
    let text = words.chain(own.split_whitespace()).collect::<Vec<_>>().join(" ");
    (text, tree.url_args.iter().filter(|arg| !named(&arg.word)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tree: &Tree) -> String {
        let urls = tree.url_args.iter().map(|arg| format!("{}<{}>", arg.word, arg.file));
        tree.args.iter().map(|arg| (*arg).to_owned()).chain(urls).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_tree_is_known_by_its_listing_and_told_where_the_rest_is() {
        for (what, listing, program, initrds, args) in [
            (
                "Ubuntu live (casper)",
                &[
                    "casper/filesystem.squashfs",
                    "casper/initrd",
                    "casper/vmlinuz",
                    "ubuntu-24.04.iso",
                    "md5sum.txt",
                ][..],
                "casper/vmlinuz",
                &["casper/initrd"][..],
                "boot=casper ip=dhcp url=<ubuntu-24.04.iso>",
            ),
            (
                "Debian live",
                &[
                    "live/filesystem.squashfs",
                    "live/vmlinuz-6.1.0-18-amd64",
                    "live/initrd.img-6.1.0-18-amd64",
                ],
                "live/vmlinuz-6.1.0-18-amd64",
                &["live/initrd.img-6.1.0-18-amd64"],
                "boot=live components fetch=<live/filesystem.squashfs>",
            ),
            (
                "Debian installer",
                &["debian-installer/amd64/initrd.gz", "debian-installer/amd64/linux", "pxelinux.0"],
                "debian-installer/amd64/linux",
                &["debian-installer/amd64/initrd.gz"],
                "",
            ),
            (
                "Fedora or RHEL",
                &[
                    "images/pxeboot/vmlinuz",
                    "images/pxeboot/initrd.img",
                    "images/install.img",
                    "BaseOS/repodata/repomd.xml",
                    "treeinfo",
                ],
                "images/pxeboot/vmlinuz",
                &["images/pxeboot/initrd.img"],
                "ip=dhcp inst.stage2=<> inst.repo=<>",
            ),
            (
                "Fedora or RHEL",
                &["images/pxeboot/vmlinuz", "images/pxeboot/initrd.img", "LiveOS/squashfs.img"],
                "images/pxeboot/vmlinuz",
                &["images/pxeboot/initrd.img"],
                "ip=dhcp rd.live.image root=live:<LiveOS/squashfs.img>",
            ),
            (
                "SUSE",
                &["boot/x86_64/loader/linux", "boot/x86_64/loader/initrd", "boot/x86_64/root"],
                "boot/x86_64/loader/linux",
                &["boot/x86_64/loader/initrd"],
                "install=<>",
            ),
            (
                "Arch",
                &[
                    "arch/boot/amd-ucode.img",
                    "arch/boot/x86_64/initramfs-linux.img",
                    "arch/boot/x86_64/vmlinuz-linux",
                    "arch/x86_64/airootfs.sfs",
                ],
                "arch/boot/x86_64/vmlinuz-linux",
                &["arch/boot/amd-ucode.img", "arch/boot/x86_64/initramfs-linux.img"],
                "archisobasedir=arch ip=dhcp archiso_http_srv=<>",
            ),
            (
                "Alpine",
                &[
                    "apks/x86_64/APKINDEX.tar.gz",
                    "boot/initramfs-lts",
                    "boot/modloop-lts",
                    "boot/vmlinuz-lts",
                ],
                "boot/vmlinuz-lts",
                &["boot/initramfs-lts"],
                "ip=dhcp modloop=<boot/modloop-lts> alpine_repo=<apks>",
            ),
            (
                "ESXi",
                &["B.B00", "BOOT.CFG", "EFI/BOOT/BOOTX64.EFI", "S.V00", "MBOOT.C32"],
                "EFI/BOOT/BOOTX64.EFI",
                &[],
                "-c <BOOT.CFG>",
            ),
        ] {
            let tree = of(listing).unwrap_or_else(|| panic!("{what}"));
            assert_eq!((tree.what, tree.program.as_str()), (what, program));
            assert_eq!(tree.initrds, initrds);
            assert_eq!(told(&tree), args);
            assert_eq!(tree.warnings, Vec::<String>::new(), "{what}");
            // A part of a tree is none, or says what it lacks: it is never started blindly with the same words.
            let without: Vec<&str> = listing.iter().copied().filter(|name| *name != program).collect();
            assert_eq!(of(&without).map(|tree| tree.what), None, "{what} without its kernel");
        }
        assert_eq!(of(&["vmlinuz", "initrd.img"]), None, "a plain folder is no tree");
        assert_eq!(of(&["boot.cfg", "efi/boot/bootx64.efi"]), None, "somebody else's boot.cfg");
    }

    #[test]
    fn what_a_tree_lacks_is_said() {
        for (listing, wanted) in [
            (&["casper/vmlinuz", "casper/initrd"][..], "whole ISO"),
            (&["install.amd/vmlinuz", "install.amd/initrd.gz"], "netboot archive"),
            (&["images/pxeboot/vmlinuz", "images/pxeboot/initrd.img"], "images/install.img"),
            (
                &[
                    "images/pxeboot/vmlinuz",
                    "images/pxeboot/initrd.img",
                    "images/install.img",
                    "BaseOS/repodata/repomd.xml",
                ],
                "treeinfo",
            ),
        ] {
            let tree = of(listing).unwrap();
            assert!(tree.warnings.iter().any(|warning| warning.contains(wanted)), "{wanted}: {tree:?}");
        }
        assert!(boot_cfg_warning("bootstate=0\nkernel=/b.b00\nmodules=/a.gz --- /b.gz\n").is_some());
        assert!(boot_cfg_warning("kernel=b.b00\nmodules=a.gz --- b.gz\n").is_none());
        assert!(boot_cfg_warning("prefix=http://x/\nkernel=/b.b00\n").is_none());
    }

    #[test]
    fn what_the_operator_names_is_the_operators() {
        let tree = of(&["casper/vmlinuz", "casper/initrd", "u.iso"]).unwrap();
        assert_eq!(arguments(&tree, ""), ("boot=casper ip=dhcp".into(), vec![url("url=", "u.iso")]));
        let (text, urls) = arguments(&tree, "url=http://mirror/u.iso quiet ip=10.0.0.5 ---");
        assert_eq!(text, "boot=casper url=http://mirror/u.iso quiet ip=10.0.0.5 ---");
        assert_eq!(urls, []);
    }
}
