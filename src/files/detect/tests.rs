//! Folders as people lay them out.

use super::*;
use crate::files::library::test_site::{SMALL_WIM, Site};
use crate::files::sniff::samples;
use crate::jobs::image::WimbootAt;
use crate::wire::arch::Cpu;

fn reason(image: &Image) -> &str {
    image.unbootable.as_deref().unwrap_or_else(|| panic!("{} boots: {image:?}", image.name))
}

fn iso() -> Vec<u8> {
    let mut bytes = vec![0; 0x9000];
    bytes[0x8001..0x8006].copy_from_slice(b"CD001");
    bytes
}

#[test]
fn winpe_is_seen_from_its_wim() {
    let site = Site::new();
    site.write("images/pe/boot.wim", SMALL_WIM);
    site.write("images/pe/wimboot", b"wimboot");
    site.write("images/pe/BCD", b"bcd");
    site.write("images/pe/Boot/bcd", b"another");
    site.write("images/pe/Boot/boot.sdi", b"sdi");
    site.write("images/pe/Boot/Fonts/wgl4_boot.ttf", b"font");
    site.write("images/pe/segoe_slboot.ttf", b"font");
    site.write("images/pe/startnet.cmd", b"cmd");
    site.write("images/pe/readme.txt", b"not for System32");
    let image = site.image("pe");
    assert_eq!((image.kind, image.cpu), (Some(ImageKind::Winpe), Some(Cpu::X64)));
    assert_eq!(image.unbootable, None);
    assert_eq!(image.title, "pe (Windows Setup, 10.0.26100, x64)");
    let boot = BootFiles::Winpe {
        wimboot: WimbootAt::Image("wimboot".into()),
        wim: "boot.wim".into(),
        extra: ["BCD", "segoe_slboot.ttf", "startnet.cmd", "Boot/boot.sdi"].map(String::from).to_vec(),
    };
    assert_eq!(image.boot, Some(boot));
    assert!(image.warnings.iter().any(|warning| warning.starts_with("Boot/bcd")), "{:?}", image.warnings);
    assert_eq!(image.files.len(), 9);
}

#[test]
fn install_media_boot_their_sources_folder_and_a_loader_folder_s_wimboot() {
    let site = Site::new();
    site.write("images/media/sources/boot.wim", SMALL_WIM);
    site.write("images/media/sources/install.wim", b"never looked at");
    site.write("loaders/wimboot", b"wimboot");
    let image = site.image("media");
    let Some(BootFiles::Winpe { wimboot, wim, .. }) = &image.boot else { panic!("{image:?}") };
    assert_eq!(*wimboot, WimbootAt::Loader("wimboot".into()));
    assert_eq!(wim, "sources/boot.wim");
}

#[test]
fn winpe_without_wimboot_says_so() {
    let site = Site::new();
    site.write("images/pe/boot.wim", SMALL_WIM);
    let image = site.image("pe");
    assert_eq!(image.kind, Some(ImageKind::Winpe));
    assert!(reason(&image).contains("no wimboot"), "{}", reason(&image));
    assert!(site.library().load().http_image("pe/boot.wim").is_ok(), "its payload is served all the same");
}

#[test]
fn a_wimboot_for_another_processor_does_not_count() {
    let site = Site::new();
    site.write("images/pe/boot.wim", SMALL_WIM);
    site.write("images/pe/wimboot", &samples::efi(0xaa64));
    assert!(reason(&site.image("pe")).contains("another processor"));
    site.write("images/pe/image.toml", b"arch = \"arm64\"");
    site.write("images/pe/wimboot", &samples::efi(0x8664));
    site.write("loaders/wimboot.arm64", &samples::efi(0xaa64));
    let image = site.image("pe");
    let Some(BootFiles::Winpe { wimboot, .. }) = &image.boot else { panic!("{image:?}") };
    assert_eq!(*wimboot, WimbootAt::Loader("wimboot.arm64".into()));
    assert!(image.warnings.iter().any(|warning| warning.contains("built for x64")), "{:?}", image.warnings);
}

#[test]
fn a_wim_that_wimboot_cannot_boot_gives_its_reason() {
    let site = Site::new();
    site.write("loaders/wimboot", b"wimboot");
    site.write("images/solid/boot.wim", include_bytes!("../../../tests/data/wim/solid-lzms.wim"));
    site.write("images/cut/boot.wim", &SMALL_WIM[..900]);
    site.write("images/text/boot.wim", b"not a WIM at all");
    site.write("images/esd/sources/install.esd", b"x");
    site.write("images/swm/a.swm", b"x");
    let mut unmarked = SMALL_WIM.to_vec();
    unmarked[120] = 0;
    site.write("images/unmarked/boot.wim", &unmarked);
    site.write("images/beyond/boot.wim", SMALL_WIM);
    site.write("images/beyond/image.toml", b"index = 3");
    for (name, part) in [
        ("solid", "LZMS"),
        ("cut", "truncated"),
        ("text", "not a WIM"),
        ("esd", "solid"),
        ("swm", "split"),
        ("unmarked", "index"),
        ("beyond", "index 3"),
    ] {
        let image = site.image(name);
        assert!(reason(&image).contains(part), "{name}: {}", reason(&image));
        assert_eq!(image.boot, None);
    }
    site.write("images/unmarked/image.toml", b"index = 1");
    let image = site.image("unmarked");
    assert_eq!((image.unbootable, image.index), (None, Some(1)));
    assert_eq!(image.title, "unmarked (Windows PE, 10.0.26100, x64)");
}

#[test]
fn a_script_with_variables_is_checked_when_it_is_scanned() {
    let site = Site::new();
    site.write("images/lab/boot.ipxe.tmpl", b"#!ipxe\necho {{serial}}\n");
    site.write("images/lab/linux", &samples::bzimage());
    let image = site.image("lab");
    assert_eq!((image.kind, &image.unbootable), (Some(ImageKind::Script), &None));
    assert!(image.template.is_some() && crate::jobs::script::last_file(&image).is_none());
    assert!(!image.files.iter().any(|file| file.name.contains("tmpl")), "a template is no payload");
    site.write("images/lab/boot.ipxe.tmpl", b"#!ipxe\n\necho {{seriel}}\n");
    let image = site.image("lab");
    assert!(reason(&image).contains("boot.ipxe.tmpl line 3") && reason(&image).contains("seriel"));
    assert_eq!(image.boot, None);
    // Said to be something else, it is.
    site.write("images/lab/image.toml", b"kind = \"linux\"");
    assert_eq!(site.image("lab").kind, Some(ImageKind::Linux));
}

#[test]
fn answer_files_come_from_private_and_stay_out_of_the_payload() {
    let site = Site::new();
    site.write("images/lab/linux", &samples::bzimage());
    site.write("images/lab/private/ks.cfg", b"rootpw {{serial}}");
    site.write("images/lab/private/once.xml", b"<key>{{mac}}</key>");
    site.write(
        "images/lab/image.toml",
        b"answers = [\"ks.cfg\"]\nanswers_once = [\"once.xml\"]\ngroup = \"Lab\"\nkey = \"7\"",
    );
    let image = site.image("lab");
    let named: Vec<_> = image.answers.iter().map(|answer| (answer.name.as_str(), answer.once)).collect();
    assert_eq!(named, [("ks.cfg", false), ("once.xml", true)]);
    assert!(!image.files.iter().any(|file| file.name.contains("private")));
    assert_eq!((image.group.as_deref(), image.key), (Some("Lab"), Some('7')));
    for (toml, word) in [
        ("answers = [\"gone.cfg\"]", "private/gone.cfg: is not in the folder"),
        ("answers = [\"../linux\"]", "no name of a file"),
        ("answers = [\".x\"]", "no name of a file"),
        ("answers = [\"ks.cfg\"]\nanswers_once = [\"ks.cfg\"]", "named twice"),
    ] {
        site.write("images/lab/image.toml", toml.as_bytes());
        let image = site.image("lab");
        assert!(reason(&image).contains(word), "{toml}: {}", reason(&image));
    }
    site.write("secret", b"x");
    std::os::unix::fs::symlink("../../../secret", site.path().join("images/lab/private/link")).unwrap();
    site.write("images/lab/image.toml", b"answers = [\"link\"]");
    assert!(reason(&site.image("lab")).contains("leaves the folder"), "{}", reason(&site.image("lab")));
    site.write("images/lab/private/ks.cfg", b"{{sereal}}");
    site.write("images/lab/image.toml", b"answers = [\"ks.cfg\"]");
    assert!(reason(&site.image("lab")).contains("private/ks.cfg: line 1"), "{}", reason(&site.image("lab")));
}

#[test]
fn wimboot_s_limits_are_kept() {
    let site = Site::new();
    site.write("loaders/wimboot", b"wimboot");
    site.write("images/pe/boot.wim", SMALL_WIM);
    let long = format!("{}.cmd", "x".repeat(28));
    site.write(&format!("images/pe/{long}"), b"x");
    site.write("images/pe/image.toml", format!("files = [\"boot.wim\", \"{long}\"]").as_bytes());
    assert!(reason(&site.image("pe")).contains("31 characters"));
    let names: Vec<_> = (0..63).map(|n| format!("{n}.cmd")).collect();
    for name in &names {
        site.write(&format!("images/pe/{name}"), b"x");
    }
    site.write(
        "images/pe/image.toml",
        format!("files = {:?}", [&["boot.wim".to_owned()], &names[..]].concat()).as_bytes(),
    );
    assert!(reason(&site.image("pe")).contains("64 files"), "{}", reason(&site.image("pe")));
    site.write("images/pe/image.toml", b"args = \"quiet frobnicate\"");
    assert!(site.image("pe").warnings.iter().any(|warning| warning.contains("frobnicate")));
}

#[test]
fn linux_is_seen_from_its_kernel() {
    let site = Site::new();
    site.write("images/debian/linux", &samples::bzimage());
    site.write("images/debian/initrd.gz", b"initrd");
    site.write("images/debian/amd-ucode.img", b"microcode");
    site.write("images/debian/cmdline", b"quiet\nauto=true  priority=critical\n");
    let image = site.image("debian");
    assert_eq!((image.kind, image.cpu, image.platform), (Some(ImageKind::Linux), Some(Cpu::X64), None));
    assert_eq!(image.args, "quiet auto=true priority=critical");
    let initrds = ["amd-ucode.img", "initrd.gz"].map(String::from).to_vec();
    assert_eq!(image.boot, Some(BootFiles::Linux { kernel: "linux".into(), initrds }));
    // Seen by its magic alone, and an ARM64 one.
    site.write("images/magic/some-file", &samples::bzimage());
    assert_eq!(site.image("magic").kind, Some(ImageKind::Linux));
    let mut arm = vec![0; 64];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    site.write("images/arm/Image", &arm);
    let image = site.image("arm");
    assert_eq!((image.cpu, image.platform), (Some(Cpu::Arm64), Some(Platform::Efi)));
    // Known by its name alone (a compressed kernel of another processor).
    site.write("images/name/vmlinuz-6.1", b"\x1f\x8b");
    assert_eq!(site.image("name").kind, Some(ImageKind::Linux));
}

#[test]
fn isos_programs_and_scripts_are_seen_from_their_content() {
    let site = Site::new();
    site.write("images/live/disc.bin", &iso());
    site.write("images/prog/tool.efi", &samples::efi(0xaa64));
    site.write("images/own/start.ipxe", b"#!ipxe\nexit\n");
    let live = site.image("live");
    assert_eq!(live.boot, Some(BootFiles::Iso { iso: "disc.bin".into() }));
    let program = site.image("prog");
    assert_eq!(program.boot, Some(BootFiles::Efi { program: "tool.efi".into() }));
    assert_eq!((program.cpu, program.platform), (Some(Cpu::Arm64), Some(Platform::Efi)));
    assert_eq!(site.image("own").boot, Some(BootFiles::Script { script: "start.ipxe".into() }));
}

#[test]
fn a_choice_that_is_not_ours_is_left_to_image_toml() {
    let site = Site::new();
    site.write("images/two/a.iso", &iso());
    site.write("images/two/b.iso", &iso());
    assert!(reason(&site.image("two")).contains("more than one ISO (a.iso, b.iso)"));
    site.write("images/two/image.toml", b"files = [\"B.ISO\"]\ntitle = \"The second\"\ndestructive = true");
    let image = site.image("two");
    assert_eq!(image.boot, Some(BootFiles::Iso { iso: "b.iso".into() }));
    assert_eq!((image.title.as_str(), image.destructive), ("The second", true));
}

#[test]
fn mistakes_in_image_toml_are_the_reason() {
    let site = Site::new();
    for (name, text, part) in [
        ("key", "titel = \"x\"", "titel"),
        ("missing", "files = [\"gone.iso\"]", "gone.iso, named by image.toml, is not in the folder"),
        ("out", "files = [\"../key/a.iso\"]", "../key/a.iso"),
        ("kind", "kind = \"linux\"", "no Linux kernel"),
        ("notscript", "kind = \"script\"\nfiles = [\"a.iso\"]", "no iPXE script"),
        ("noteef", "kind = \"efi\"\nfiles = [\"a.iso\"]", "no EFI program"),
        ("notwim", "kind = \"winpe\"", "no WIM"),
    ] {
        site.write(&format!("images/{name}/a.iso"), &iso());
        site.write(&format!("images/{name}/image.toml"), text.as_bytes());
        let image = site.image(name);
        assert!(reason(&image).contains(part), "{name}: {}", reason(&image));
        assert_eq!(image.boot, None);
    }
    site.write("images/closed/image.toml", b"acess = \"boot\"");
    assert_eq!(site.image("closed").access, Access::Boot);
}

#[test]
fn no_text_is_read_through_a_link_that_leaves_the_folder() {
    use std::os::unix::fs::symlink;
    let site = Site::new();
    let images = site.path().join("images");
    site.write("secret", b"title = \"secret\"");
    for name in ["args", "toml", "gone", "own"] {
        site.write(&format!("images/{name}/linux"), &samples::bzimage());
    }
    symlink("../../secret", images.join("args/cmdline")).unwrap();
    symlink("../../secret", images.join("toml/image.toml")).unwrap();
    symlink("nowhere", images.join("gone/image.toml")).unwrap();
    site.write("images/own/shared/settings", b"title = \"ours\"");
    symlink("shared/settings", images.join("own/image.toml")).unwrap();
    let image = site.image("args");
    assert_eq!((reason(&image), image.args.as_str()), ("cmdline is a link that leaves the folder", ""));
    let image = site.image("toml");
    assert_eq!(reason(&image), "image.toml is a link that leaves the folder");
    assert!(image.title == "toml" && image.destructive && image.access == Access::Boot);
    let image = site.image("gone");
    assert!(reason(&image).starts_with("image.toml cannot be read") && image.destructive);
    assert_eq!(site.image("own").title, "ours");
}

#[test]
fn folders_with_nothing_to_boot_say_so() {
    let site = Site::new();
    std::fs::create_dir_all(site.path().join("images/empty")).unwrap();
    site.write("images/docs/readme.txt", b"x");
    site.write("images/loaders-only/ipxe64.efi", &samples::efi(0x8664));
    site.write("images/loaders-only/wimboot", &samples::bzimage());
    assert!(reason(&site.image("empty")).contains("no files"));
    assert!(reason(&site.image("docs")).contains("nothing bootable"));
    assert!(reason(&site.image("loaders-only")).contains("nothing bootable"));
    assert_eq!(site.image("docs").kind, None);
}

#[test]
fn a_folder_laid_out_as_gss_does_is_an_image() {
    let site = Site::new();
    site.write("loaders/wimboot", b"wimboot");
    site.write("images/MenuOption128/X64/boot.wim", SMALL_WIM);
    site.write("images/MenuOption128/X64/ipxe64.efi", &samples::efi(0x8664));
    site.write("images/MenuOption128/X64/bstrap.0", b"bstrap");
    site.write("images/MenuOption128/X86/boot.wim", SMALL_WIM);
    site.write("images/MenuOption128/zipxe.0", b"zipxe");
    let image = site.image("MenuOption128");
    let Some(BootFiles::Winpe { wim, .. }) = &image.boot else { panic!("{image:?}") };
    assert_eq!(wim, "X64/boot.wim");
    assert!(image.warnings.iter().any(|warning| warning.contains("2 WIMs")), "{:?}", image.warnings);
    assert_eq!(image.files.len(), 5);
}

#[test]
fn a_distributions_tree_boots_with_the_arguments_it_needs() {
    let site = Site::new();
    site.write("images/ubuntu/casper/vmlinuz", &samples::bzimage());
    site.write("images/ubuntu/casper/initrd", b"initrd");
    site.write("images/ubuntu/ubuntu.iso", &iso());
    site.write("images/ubuntu/image.toml", b"args = \"quiet\"");
    let image = site.image("ubuntu");
    assert_eq!(image.kind, Some(ImageKind::Linux));
    let Some(BootFiles::Linux { kernel, initrds }) = &image.boot else { panic!("{image:?}") };
    assert_eq!((kernel.as_str(), initrds.as_slice()), ("casper/vmlinuz", &["casper/initrd".to_owned()][..]));
    assert_eq!(image.args, "boot=casper ip=dhcp quiet");
    assert_eq!((image.url_args[0].word.as_str(), image.url_args[0].file.as_str()), ("url=", "ubuntu.iso"));
    assert_eq!(image.title, "ubuntu (Ubuntu live (casper))");
    for name in ["b.b00", "s.v00"] {
        site.write(&format!("images/esxi/{name}"), b"module");
    }
    site.write("images/esxi/boot.cfg", b"kernel=/b.b00\nmodules=/s.v00\n");
    site.write("images/esxi/efi/boot/bootx64.efi", &samples::efi(0x8664));
    site.write("images/esxi/mboot.efi", &samples::efi(0x8664));
    let image = site.image("esxi");
    assert_eq!(image.boot, Some(BootFiles::Efi { program: "mboot.efi".into() }), "{image:?}");
    assert_eq!(image.url_args[0].word, "-c ");
    assert!(image.warnings.iter().any(|warning| warning.contains("slash")), "{:?}", image.warnings);
}
