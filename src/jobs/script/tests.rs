//! Every shape of script as text to be read, and the proof that no value changes the shape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::menu::MENU_BYTES_MAX;
use super::*;
use crate::jobs::book::published::Published;
use crate::jobs::image::{Access, BootFiles, ImageFile, ImageKind, WimbootAt};
use crate::jobs::job::{JobSpec, Selector};
use crate::wire::arch::{Cpu, Platform};
use crate::wire::{Arch, MacAddr};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const BASE: &str = "http://10.77.0.1:4433";
const NOW_UNIX: u32 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_UNIX.into())
}

#[derive(Default)]
struct Library(Vec<Arc<Image>>);

impl Images for Library {
    fn image(&self, name: &str) -> Option<&Image> {
        self.0.iter().map(Arc::as_ref).find(|image| image.name == name)
    }

    fn list(&self) -> &[Arc<Image>] {
        &self.0
    }
}

fn image(name: &str, kind: ImageKind, boot: BootFiles, files: &[(&str, u64)]) -> Image {
    Image {
        name: name.into(),
        title: name.into(),
        kind: Some(kind),
        cpu: None,
        platform: None,
        args: String::new(),
        index: None,
        destructive: false,
        access: Access::Open,
        boot: Some(boot),
        unbootable: None,
        warnings: Vec::new(),
        files: files.iter().map(|(name, len)| ImageFile { name: (*name).into(), len: *len }).collect(),
        group: None,
        key: None,
        loader: None,
        template: None,
        answers: Vec::new(),
        url_args: Vec::new(),
        gss: None,
    }
}

fn winpe() -> Image {
    let boot = BootFiles::Winpe {
        wimboot: WimbootAt::Loader("wimboot".into()),
        wim: "sources/boot.wim".into(),
        extra: vec!["BCD".into(), "scripts/startnet.cmd".into()],
    };
    let files = [("sources/boot.wim", 512 << 20), ("BCD", 16_384), ("scripts/startnet.cmd", 40)];
    Image {
        title: "Windows PE (x64)".into(),
        cpu: Some(Cpu::X64),
        index: Some(2),
        args: "gui".into(),
        ..image("winpe-x64", ImageKind::Winpe, boot, &files)
    }
}

fn linux() -> Image {
    let boot =
        BootFiles::Linux { kernel: "vmlinuz".into(), initrds: vec!["ucode.img".into(), "initrd.img".into()] };
    let files = [("vmlinuz", 9 << 20), ("ucode.img", 1 << 20), ("initrd.img", 30 << 20)];
    Image { args: "quiet console=ttyS0".into(), ..image("debian", ImageKind::Linux, boot, &files) }
}

fn iso() -> Image {
    image(
        "rescue iso",
        ImageKind::Iso,
        BootFiles::Iso { iso: "rescue 12.iso".into() },
        &[("rescue 12.iso", 700 << 20)],
    )
}

fn efi() -> Image {
    let boot = BootFiles::Efi { program: "memtest.efi".into() };
    Image {
        platform: Some(Platform::Efi),
        ..image("memtest", ImageKind::Efi, boot, &[("memtest.efi", 150_000)])
    }
}

fn own_script() -> Image {
    image("own", ImageKind::Script, BootFiles::Script { script: "own.ipxe".into() }, &[("own.ipxe", 300)])
}

/// Uses everything a template can: labels of its own, iPXE's settings, both forms of a value.
const TEMPLATE: &str = "#!ipxe\n# lab of {{image}}\necho {{manufacturer}} {{product}} {{serial}} is ${hostname}\n\
    iseq {{asset}} wiped && goto bootstorm_local ||\n:again\n\
    kernel {{files}}/vmlinuz ip=dhcp mac={{mac:dashes}} name={{hostname}} ks={{answers}}/ks.cfg?serial={{serial:url}} \
    || goto bootstorm_local\ninitrd {{files}}/initrd.img || goto bootstorm_local\nboot || goto bootstorm_local\n";

fn template(text: &str) -> Image {
    let boot = BootFiles::Script { script: "boot.ipxe.tmpl".into() };
    let template = script_template(text).unwrap();
    Image { template: Some(template), ..image("lab", ImageKind::Script, boot, &[("vmlinuz", 9 << 20)]) }
}

fn library() -> Library {
    Library([linux(), efi(), own_script(), iso(), winpe()].map(Arc::new).into())
}

fn bios() -> Identity {
    Identity {
        mac: Some(MAC),
        platform: Some(Platform::Bios),
        build_arch: Some("i386".into()),
        long_mode: Some(true),
        ..Identity::default()
    }
}

fn uefi() -> Identity {
    Identity {
        mac: Some(MAC),
        platform: Some(Platform::Efi),
        build_arch: Some("x86_64".into()),
        ..Identity::default()
    }
}

/// The script for `who` when a job does `action` (or nobody has said anything), and what it does.
fn script_for(
    action: Option<Action>,
    library: &Library,
    who: &Identity,
    policy: &Policy,
) -> (String, Composed) {
    let book = Published::new();
    if let Some(action) = action {
        book.add(JobSpec::new(action, Selector::Mac(MAC)), library, now()).unwrap();
    }
    compose_with(&book, library, who, policy)
}

fn compose_with(book: &Published, library: &Library, who: &Identity, policy: &Policy) -> (String, Composed) {
    let key = TokenKey::new([7; 32]);
    let mut out = String::from("left over from before");
    let composed =
        compose(book.load().decide(who), library, who, &context(&key, policy, Hints::default()), &mut out);
    (out, composed)
}

fn context<'a>(key: &'a TokenKey, policy: &'a Policy, hints: Hints<'a>) -> Context<'a> {
    Context { base_url: BASE, boot: BootId(0x4d2), key, now_unix: NOW_UNIX, policy, hints }
}

fn written(write: impl FnOnce(&mut String)) -> String {
    let mut out = String::from("left over from before");
    write(&mut out);
    well_formed(&out);
    out
}

fn rejection(who: &Identity, reason: &str) -> String {
    written(|out| rejected(who, reason, Hints::default(), out))
}

fn unknown(unknown: Unknown) -> Policy {
    Policy { unknown, ..Policy::default() }
}

fn for_image(name: &str, library: &Library, who: &Identity) -> (String, Composed) {
    script_for(Some(Action::Image(name.into())), library, who, &Policy::default())
}

/// Snapshots show `TOKEN`: the real one is sixty-four characters of noise, and has its own tests.
fn readable(script: &str) -> String {
    let mut out = String::new();
    let mut rest = script;
    while let Some(at) = rest.find("/s/") {
        let (before, token) = rest.split_at(at + 3);
        out.push_str(before);
        out.push_str("TOKEN");
        rest = &token[SignedToken::LEN..];
    }
    out + rest
}

fn check(name: &str, script: &str) {
    insta::with_settings!(
        { snapshot_path => "../../../tests/snapshots", prepend_module_to_snapshot => false, omit_expression => true },
        { insta::assert_snapshot!(name, readable(script)); }
    );
}

#[test]
fn winpe_by_bios_and_by_uefi() {
    let (script, composed) = for_image("winpe-x64", &library(), &bios());
    check("script_winpe_bios", &script);
    assert_eq!(composed.what, Offer::Image);
    assert_eq!(composed.job, Some(JobId(1)));
    assert_eq!(composed.image.as_deref(), Some("winpe-x64"));
    assert_eq!(composed.last_file.as_deref(), Some("sources/boot.wim"));
    check("script_winpe_uefi", &for_image("winpe-x64", &library(), &uefi()).0);
}

#[test]
fn winpe_warnings_come_before_the_download() {
    let mut image = winpe();
    image.warnings = vec!["the WIM is split".into()];
    image.files[0].len = 3 << 30;
    image.args = "gui rawbcd index=3 nonsense".into();
    image.index = None;
    if let Some(BootFiles::Winpe { wimboot, extra, .. }) = &mut image.boot {
        *wimboot = WimbootAt::Image("wimboot".into());
        extra.push("a-name-of-more-than-thirty-one-characters.txt".into());
        extra.push("efi/bcd".into());
    }
    let library = Library(vec![Arc::new(image)]);
    check("script_winpe_warnings", &for_image("winpe-x64", &library, &bios()).0);
}

#[test]
fn linux_by_bios_and_by_uefi() {
    let (script, composed) = for_image("debian", &library(), &bios());
    check("script_linux_bios", &script);
    assert_eq!(composed.last_file.as_deref(), Some("initrd.img"));
    check("script_linux_uefi", &for_image("debian", &library(), &uefi()).0);
}

#[test]
fn iso_efi_program_and_own_script() {
    check("script_iso", &for_image("rescue iso", &library(), &bios()).0);
    check("script_efi", &for_image("memtest", &library(), &uefi()).0);
    check("script_own", &for_image("own", &library(), &uefi()).0);
}

#[test]
fn local_boot_differs_by_firmware() {
    let local = |who: &Identity| script_for(Some(Action::Local), &library(), who, &Policy::default()).0;
    check("script_local_bios", &local(&bios()));
    check("script_local_uefi", &local(&uefi()));
    check("script_local_unknown", &local(&Identity { mac: Some(MAC), ..Identity::default() }));
}

#[test]
fn local_boot_goes_on_with_the_next_way_of_the_list() {
    let key = TokenKey::new([7; 32]);
    let book = Published::new();
    book.add(JobSpec::new(Action::Local, Selector::Mac(MAC)), &library(), now()).unwrap();
    let policy = Policy::default();
    let script = |who: &Identity, local_boot| {
        let mut out = String::new();
        let hints = Hints { local_boot, ..Hints::default() };
        compose(book.load().decide(who), &library(), who, &context(&key, &policy, hints), &mut out);
        well_formed(&out);
        out
    };
    check("script_local_bios_second_way", &script(&bios(), 1));
    check("script_local_bios_third_way", &script(&bios(), 2));
    check("script_local_uefi_second_way", &script(&uefi(), 1));
    check("script_local_uefi_third_way", &script(&uefi(), 2));
    // After the last one the first comes round again.
    assert_eq!(script(&uefi(), 3), script(&uefi(), 0));
    assert_eq!(script(&bios(), 255), script(&bios(), 0));
    for way in
        LocalStrategy::list(Some(Platform::Bios)).iter().chain(LocalStrategy::list(Some(Platform::Efi)))
    {
        assert_eq!(LocalStrategy::of_word(way.word()), Some(*way));
    }
    assert_eq!(LocalStrategy::of_word("x"), None);
}

#[test]
fn refusals_say_why() {
    let wait = Some(Duration::from_secs(40));
    check("script_queued", &written(|out| queued(&uefi(), BASE, 12, wait, POLL, out)));
    assert!(written(|out| queued(&bios(), BASE, 1, None, POLL, out)).contains("number 1 in line\n"));
    check("script_busy", &written(|out| not_now(&bios(), BASE, out)));
    check("script_refused", &written(|out| refused(&uefi(), JobId(9), &"it was consumed || shell", out)));
    let script = rejection(&bios(), "stolen; ask ${password}\nshell");
    check("script_rejected", &script);
    assert!(!script.contains("http") && !script.contains("52:54"), "a denial names nothing else");
    assert!(!rejection(&uefi(), " ").contains("not to be booted"));
    let second = written(|out| rejected(&bios(), "", Hints { local_boot: 1, ..Hints::default() }, out));
    assert!(!second.contains("0x80"), "{second}");
}

#[test]
fn a_custom_script_with_variables() {
    let library = Library(vec![Arc::new(template(TEMPLATE))]);
    let who = Identity { serial: Some("A/1 ${x} || #".into()), product: Some("-Box".into()), ..uefi() };
    let (script, composed) = for_image("lab", &library, &who);
    check("script_template", &script);
    assert_eq!((composed.what, composed.last_file), (Offer::Image, None));
    assert!(
        !script_for(None, &library, &who, &Policy::default()).0.contains("lab"),
        "it is for jobs, not for menus"
    );
    // Nothing an operator's last line ends with reaches ours.
    let library = Library(vec![Arc::new(template("#!ipxe\r\necho {{job}}\r\necho x\\"))]);
    let script = for_image("lab", &library, &who).0;
    assert!(
        script.ends_with(
            "\necho j1\necho x\n:bootstorm_local\necho bootstorm: booting from the local disk\n\
        # with an error, or UEFI shows its set-up instead of its next entry\nexit 1\n"
        ),
        "{script}"
    );
}

#[test]
fn a_custom_scripts_mistakes_are_named() {
    for (text, line, word) in [
        ("echo x", 1, "#!ipxe"),
        ("", 1, "#!ipxe"),
        ("#!ipxe\n\necho {{uid}}", 3, "uid"),
        ("#!ipxe\n :bootstorm_local", 2, "server's own"),
    ] {
        let bad = script_template(text).unwrap_err();
        assert!(bad.line == line && bad.reason.contains(word), "{text:?}: {bad}");
    }
}

#[test]
fn a_menu_with_groups_and_keys() {
    let mut library = library();
    let edit = |image: &Arc<Image>, group: Option<&str>, key: Option<char>| {
        Arc::new(Image { group: group.map(Into::into), key, ..Image::clone(image) })
    };
    for (index, (group, key)) in [
        (Some("Linux"), Some('x')),
        (Some("Tools"), None),
        (Some("Tools"), Some('1')),
        (None, Some('x')),
        (None, Some('x')),
    ]
    .into_iter()
    .enumerate()
    {
        library.0[index] = edit(&library.0[index], group, key);
    }
    let policy = Policy { menu_default: MenuDefault::Image("debian".into()), ..Policy::default() };
    let (script, _) = script_for(None, &library, &uefi(), &policy);
    well_formed(&script);
    check("script_menu_groups", &script);
    // More groups than there is room for stay on the first page.
    let many =
        |n: usize| Arc::new(Image { name: format!("i{n:02}"), group: Some(format!("g{n:02}")), ..linux() });
    let (script, _) = script_for(None, &Library((0..40).map(many).collect()), &uefi(), &Policy::default());
    well_formed(&script);
    assert_eq!(script.matches("menu bootstorm: ").count(), 16);
    let no_group = Arc::new(Image { group: Some(" ".into()), key: Some('#'), ..linux() });
    let (script, _) = script_for(None, &Library(vec![no_group]), &uefi(), &Policy::default());
    assert!(script.contains("item --key 1 i0 debian"), "{script}");
    assert_eq!(
        (menu_key("w"), menu_key("l"), menu_key("0"), menu_key("ab"), menu_key("")),
        (Some('w'), None, None, None, None)
    );
}

#[test]
fn what_only_option_93_said_is_asked_for_again() {
    let who = Identity { mac: Some(MAC), arch: Some(Arch::UEFI_X64), ..Identity::default() };
    check("script_efi_by_option_93", &for_image("memtest", &library(), &who).0);
    let (script, _) = for_image("winpe-x64", &library(), &who);
    assert!(script.contains("\niseq ${buildarch} x86_64 || goto misfit\n"), "{script}");
    well_formed(&script);
    let (script, _) = for_image("winpe-x64", &library(), &uefi());
    assert!(!script.contains("buildarch"), "it has said so itself");
}

#[test]
fn menus() {
    let (script, composed) = script_for(None, &library(), &uefi(), &Policy::default());
    check("script_menu_uefi", &script);
    assert_eq!((composed.what, composed.job, composed.image), (Offer::Menu, None, None));
    check("script_menu_empty", &script_for(None, &Library::default(), &bios(), &Policy::default()).0);
}

#[test]
fn a_menu_shows_only_what_fits_the_machine() {
    let mut arm = linux();
    arm.name = "arm".into();
    arm.title = "Debian for ARM".into();
    arm.cpu = Some(Cpu::Arm64);
    let mut broken = iso();
    broken.name = "broken".into();
    broken.title = "broken".into();
    broken.unbootable = Some("no kernel".into());
    let mut library = library();
    library.0.extend([Arc::new(arm), Arc::new(broken)]);
    let (bios_menu, _) = script_for(None, &library, &bios(), &Policy::default());
    assert!(!bios_menu.contains("ARM") && !bios_menu.contains("broken") && !bios_menu.contains("memtest"));
    assert!(bios_menu.contains("Windows PE (x64)") && bios_menu.contains("rescue iso"));
    let (uefi_menu, _) = script_for(None, &library, &uefi(), &Policy::default());
    assert!(uefi_menu.contains("memtest"));
}

#[test]
fn a_menus_default_is_never_destructive() {
    let policy = Policy { menu_default: MenuDefault::Image("debian".into()), ..Policy::default() };
    let (script, _) = script_for(None, &library(), &uefi(), &policy);
    assert!(script.contains("\nset default i0\n"));
    let mut wiping = linux();
    wiping.destructive = true;
    let library = Library(vec![Arc::new(wiping)]);
    let (script, _) = script_for(None, &library, &uefi(), &policy);
    check("script_menu_destructive", &script);
    assert!(script.contains("\nset default local\n"));
    let gone = Policy { menu_default: MenuDefault::Image("gone".into()), ..Policy::default() };
    assert!(script_for(None, &library, &uefi(), &gone).0.contains("\nset default local\n"));
}

#[test]
fn a_menu_without_timeout_waits_for_a_key() {
    let policy = Policy { menu_timeout: Duration::ZERO, ..Policy::default() };
    let (script, _) = script_for(None, &library(), &uefi(), &policy);
    assert!(script.contains("choose --default ${default} chosen"));
}

#[test]
fn a_menu_of_very_many_images_stays_bounded() {
    let library = Library(
        (0..2_000)
            .map(|n| {
                let mut image = winpe();
                image.name = format!("{n:04}-{}", "n".repeat(240));
                image.title = image.name.clone();
                Arc::new(image)
            })
            .collect(),
    );
    let (script, _) = script_for(None, &library, &bios(), &Policy::default());
    assert!(script.len() < MENU_BYTES_MAX + 16 * 1024, "{}", script.len());
    assert!(script.contains("more on the server"));
    well_formed(&script);
}

#[test]
fn waiting_and_pending() {
    let (script, composed) = script_for(None, &library(), &uefi(), &unknown(Unknown::Wait));
    check("script_wait", &script);
    assert_eq!(composed.what, Offer::Wait);
    let (script, composed) = script_for(None, &library(), &bios(), &unknown(Unknown::Pending));
    check("script_pending", &script);
    assert_eq!(composed.what, Offer::Pending);
}

#[test]
fn shell() {
    check("script_shell", &script_for(Some(Action::Shell), &library(), &uefi(), &Policy::default()).0);
}

#[test]
fn a_denial_names_nothing() {
    let (script, composed) = script_for(None, &library(), &uefi(), &unknown(Unknown::Silent));
    check("script_denied", &script);
    assert_eq!(composed.what, Offer::Denied);
    assert!(!script.contains("http") && !script.contains("52:54") && !script.contains("b0000"));
}

#[test]
fn asking_for_an_identity_is_constant() {
    let mut one = String::new();
    ask_identity(BASE, &mut one);
    check("script_ask", &one);
    let mut two = String::from("something else");
    ask_identity(BASE, &mut two);
    assert_eq!(one, two);
}

#[test]
fn what_the_ask_script_sends_is_what_identity_reads() {
    let mut script = String::new();
    ask_identity(BASE, &mut script);
    let url = script.split_ascii_whitespace().find(|word| word.contains("/ipxe?")).unwrap();
    let query = url.split_once('?').unwrap().1;
    for pair in query.split('&') {
        let (name, _) = pair.split_once('=').unwrap();
        assert!(
            Identity::from_query(&format!("{name}="), false).is_some(),
            "{name} is asked for but never read"
        );
    }
    let filled = query
        .replace("${mymac}", "52:54:00:12:34:56")
        .replace("${uuid}", "4c4c4544-0042-3510-8052-b4c04f564231")
        .replace("${serial:uristring}", "AB%2F12+3%20x")
        .replace("${asset:uristring}", "")
        .replace("${platform}", "pcbios")
        .replace("${buildarch}", "i386")
        .replace("${mylong}", "1");
    let who = Identity::from_query(&filled, false).unwrap();
    assert_eq!(who.mac, Some(MAC));
    assert_eq!(who.serial.as_deref(), Some("AB/12+3 x"));
    assert_eq!(who.asset, None);
    assert_eq!(who.cpu(), Some(Cpu::X64));
}

#[test]
fn a_request_without_identity_is_told_from_one_with_an_empty_identity() {
    assert_eq!(Identity::from_query("", false), None);
    assert_eq!(Identity::from_query("utm=1&x", false), None);
    assert_eq!(Identity::from_query("mac=&uuid=", false), Some(Identity::default()));
    assert_eq!(Identity::from_query("serial=a+b", true).unwrap().serial.as_deref(), Some("a b"));
    assert_eq!(Identity::from_query("mac=00:00:00:00:00:00", false).unwrap().mac, None);
    assert_eq!(Identity::from_query("arch=0x7", false).unwrap().arch, Some(Arch(7)));
    let old = Identity::from_query("serial=%FFFFFFC3%FFFFFFBC1&asset=%FF", false).unwrap();
    assert_eq!((old.serial.as_deref(), old.asset.as_deref()), (Some("\u{fc}1"), Some("\u{fffd}")));
    let long = format!("serial={}", "%41".repeat(5_000));
    assert_eq!(Identity::from_query(&long, false).unwrap().serial.map(|serial| serial.len()), Some(128));
    assert_eq!(Identity::from_query("serial=%4&asset=%zz", false).unwrap().asset.as_deref(), Some("%zz"));
}

#[test]
fn a_64_bit_machine_is_never_taken_for_a_32_bit_one() {
    let said = |build_arch: &str, platform: Platform, long_mode: Option<bool>| Identity {
        build_arch: Some(build_arch.into()),
        platform: Some(platform),
        long_mode,
        ..Identity::default()
    };
    assert_eq!(said("i386", Platform::Bios, Some(true)).cpu(), Some(Cpu::X64));
    assert_eq!(said("i386", Platform::Bios, Some(false)).cpu(), Some(Cpu::X86));
    assert_eq!(said("i386", Platform::Bios, None).cpu(), None);
    assert_eq!(
        said("i386", Platform::Efi, Some(true)).cpu(),
        Some(Cpu::X86),
        "32-bit UEFI runs 32 bits only"
    );
    assert_eq!(said("x86_64", Platform::Efi, None).cpu(), Some(Cpu::X64));
    assert_eq!(said("arm64", Platform::Efi, Some(false)).cpu(), Some(Cpu::Arm64));
    assert_eq!(Identity { arch: Some(Arch::BIOS), ..Identity::default() }.cpu(), None);
    assert_eq!(Identity { arch: Some(Arch::UEFI_X64), ..Identity::default() }.cpu(), Some(Cpu::X64));
}

#[test]
fn a_bios_machine_that_did_not_say_is_asked_for_its_processor() {
    let who = Identity { long_mode: None, ..bios() };
    let (script, composed) = for_image("winpe-x64", &library(), &who);
    assert_eq!(composed.what, Offer::Image);
    check("script_winpe_asks_cpu", &script);
}

#[test]
fn an_image_for_another_processor_is_said_and_not_booted() {
    let who = Identity { long_mode: Some(false), ..bios() };
    let (script, composed) = for_image("winpe-x64", &library(), &who);
    check("script_misfit", &script);
    assert_eq!(composed.what, Offer::Misfit);
    let why = composed.why.unwrap();
    assert!(why.contains("64-bit x86") && why.contains("32-bit x86"), "{why}");
    let arm = Identity { build_arch: Some("arm64".into()), ..uefi() };
    assert_eq!(for_image("winpe-x64", &library(), &arm).1.what, Offer::Misfit);
    assert_eq!(for_image("memtest", &library(), &bios()).1.what, Offer::Misfit);
}

#[test]
fn an_image_that_vanished_or_turned_destructive_is_not_booted() {
    let book = Published::new();
    let spec = JobSpec { always: true, ..JobSpec::new(Action::Image("debian".into()), Selector::Mac(MAC)) };
    book.add(spec, &library(), now()).unwrap();
    let (script, composed) = compose_with(&book, &Library::default(), &bios(), &Policy::default());
    check("script_unavailable", &script);
    assert_eq!(composed.what, Offer::Unavailable);
    let mut wiping = linux();
    wiping.destructive = true;
    let library = Library(vec![Arc::new(wiping)]);
    assert_eq!(compose_with(&book, &library, &bios(), &Policy::default()).1.what, Offer::Unavailable);
}

#[test]
fn tokens_in_a_script_name_boot_machine_and_job() {
    let (script, _) = for_image("debian", &library(), &uefi());
    let key = TokenKey::new([7; 32]);
    let tokens: Vec<_> = script.split("/s/").skip(1).map(|rest| &rest[..SignedToken::LEN]).collect();
    assert_eq!(tokens.len(), 3);
    for token in tokens {
        let token = key.verify(token, NOW_UNIX).unwrap();
        assert_eq!((token.boot, token.mac, token.job), (BootId(0x4d2), Some(MAC), Some(JobId(1))));
        assert_ne!(token.last, 0, "a file's end is its point of no return");
        assert_eq!(token.expires_unix, NOW_UNIX + TOKEN_SECONDS);
    }
}

#[test]
fn asking_twice_gives_the_same_script_twice() {
    let book = Published::new();
    let spec = JobSpec::new(Action::Image("debian".into()), Selector::Mac(MAC));
    book.add(spec, &library(), now()).unwrap();
    let first = compose_with(&book, &library(), &uefi(), &Policy::default());
    assert_eq!(first, compose_with(&book, &library(), &uefi(), &Policy::default()));
}

#[test]
fn explaining_writes_the_same_script_and_says_why() {
    let book = Published::new();
    let library = library();
    let any = JobSpec { always: true, ..JobSpec::new(Action::Menu, Selector::Any) };
    book.add(any, &library, now()).unwrap();
    book.add(JobSpec::new(Action::Image("debian".into()), Selector::Mac(MAC)), &library, now()).unwrap();
    let key = TokenKey::new([7; 32]);
    let policy = Policy::default();
    let ctx = context(&key, &policy, Hints::default());
    let explained = compose_explained(&book.load(), &library, &uefi(), &ctx);
    let real = readable(&compose_with(&book, &library, &uefi(), &policy).0);
    let shown = readable(&explained.script);
    let said = "# rendered to be read: the tokens in its URLs open nothing";
    assert_eq!(shown.replace(said, "# boot b00000000000004d2"), real);
    assert!(shown.contains(said) && !explained.script.contains("b00000000000004d2"), "{shown}");
    assert_eq!(explained.chosen, "j2: image debian for mac 52:54:00:12:34:56: chosen (by its MAC)");
    assert_eq!(explained.lost, ["j1: menu for any machine: lost to j2, which names this machine exactly"]);
    let stranger = compose_explained(&Published::new().load(), &library, &uefi(), &ctx);
    assert_eq!(stranger.chosen, "policy unknown = \"menu\": no job is meant for this machine");
    assert!(stranger.lost.is_empty());
}

#[test]
fn a_san_disk_counts_at_its_first_piece_and_a_file_at_its_last_byte() {
    let (iso, debian) = (iso(), linux());
    let disk = last_file(&iso).unwrap();
    assert!(disk.is_done_by("rescue 12.iso", false) && !disk.is_done_by("other", true));
    let initrd = last_file(&debian).unwrap();
    assert!(initrd.is_done_by("initrd.img", true));
    assert!(!initrd.is_done_by("initrd.img", false) && !initrd.is_done_by("ucode.img", true));
}

#[test]
fn the_page_of_options_escapes_everything() {
    let mut hostile = linux();
    hostile.name = "a&b<\"'>".into();
    hostile.title = "<script>alert(1)</script>".into();
    hostile.warnings = vec!["<b>".into()];
    hostile.unbootable = Some("<i>".into());
    hostile.files[0].name = "x\"/<y>.img".into();
    let mut closed = iso();
    closed.access = Access::Boot;
    let mut out = String::new();
    options_page(&Library(vec![Arc::new(hostile), Arc::new(closed)]), &mut out);
    for raw in ["<script>", "<b>", "<i>", "<y>", "a&b<"] {
        assert!(!out.contains(raw), "{raw}");
    }
    assert!(out.contains("href=\"/images/a%26b%3C%22%27%3E/x%22/%3Cy%3E.img\""));
    assert!(!out.contains("href=\"/images/rescue"));
    options_page(&Library::default(), &mut out);
    assert!(out.contains("empty"));
}

// What iPXE does with a script's lines (src/image/script.c, src/core/exec.c), as far as structure goes.

/// One command of a line: how it follows the one before, and its words.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Command {
    after: &'static str,
    words: Vec<String>,
}

/// One line: its label, and its commands.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    label: Option<String>,
    commands: Vec<Command>,
}

fn lines(script: &str) -> Vec<Line> {
    let mut joined: Vec<Vec<u8>> = vec![Vec::new()];
    for line in script.as_bytes().split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // A NUL ends the line early.
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let last = joined.last_mut().unwrap();
        match line.strip_suffix(b"\\") {
            Some(line) => last.extend_from_slice(line),
            None => {
                last.extend_from_slice(line);
                joined.push(Vec::new());
            }
        }
    }
    joined.iter().map(|line| split(line)).collect()
}

fn split(line: &[u8]) -> Line {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c);
    let line = line.trim_ascii_start();
    let (label, line) = match line.strip_prefix(b":") {
        Some(rest) => {
            let end = rest.iter().position(is_space).unwrap_or(rest.len());
            (Some(String::from_utf8_lossy(&rest[..end]).into_owned()), &rest[end..])
        }
        None => (None, line),
    };
    let mut commands = vec![Command { after: "", words: Vec::new() }];
    for word in line.split(is_space).filter(|word| !word.is_empty()) {
        let after = match word {
            [b'#', ..] => break,
            b"||" => "||",
            b"&&" => "&&",
            b";" => ";",
            _ => {
                let words = &mut commands.last_mut().unwrap().words;
                words.push(String::from_utf8_lossy(word).into_owned());
                continue;
            }
        };
        commands.push(Command { after, words: Vec::new() });
    }
    Line { label, commands }
}

/// What must not depend on any value: labels, commands, separators, options in front of the first argument, what
/// is expanded, and where a `goto` goes. Words of free text and kernel arguments are not structure.
fn structure(script: &str) -> Vec<(Option<String>, Vec<(&'static str, Vec<String>)>)> {
    lines(script)
        .into_iter()
        .map(|line| {
            let commands = line.commands.into_iter().map(|command| (command.after, skeleton(&command.words)));
            (line.label, commands.collect())
        })
        .collect()
}

fn skeleton(words: &[String]) -> Vec<String> {
    let Some(name) = words.first() else { return Vec::new() };
    let expanded = words.iter().flat_map(|word| expansions(word));
    let kept: Vec<String> = match name.as_str() {
        // Words after these are read by people; how many there are may differ, and options would come first.
        "echo" | "prompt" | "menu" | "item" => {
            words.iter().take_while(|word| *word == name || word.starts_with('-')).cloned().collect()
        }
        // The URL is in its place, and what follows is passed on.
        "kernel" | "initrd" | "imgfetch" | "chain" | "sanboot" => words
            .iter()
            .take_while(|word| !word.starts_with("http://"))
            .cloned()
            .chain(words.iter().filter(|word| word.starts_with("http://")).map(|_| "URL".to_owned()).take(1))
            .collect(),
        _ => words.to_vec(),
    };
    kept.into_iter().chain(expanded).collect()
}

fn expansions(word: &str) -> Vec<String> {
    word.split("${").skip(1).map(|rest| format!("${{{}", rest.split('}').next().unwrap_or(rest))).collect()
}

/// What holds of every script, whatever is in it.
fn well_formed(script: &str) {
    assert!(script.starts_with("#!ipxe\n"));
    assert!(script.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{script:?}");
    assert!(!script.lines().any(|line| line.ends_with('\\')), "{script}");
    let lines = lines(script);
    let mut labels = BTreeMap::new();
    for label in lines.iter().filter_map(|line| line.label.clone()) {
        *labels.entry(label).or_insert(0) += 1;
    }
    assert!(labels.values().all(|count| *count == 1), "a label occurs twice: {labels:?}\n{script}");
    const COMMANDS: [&str; 21] = [
        "boot", "chain", "choose", "cpuid", "dhcp", "echo", "exit", "goto", "imgfetch", "imgfree", "initrd",
        "iseq", "isset", "item", "kernel", "menu", "prompt", "sanboot", "set", "shell", "sleep",
    ];
    for command in lines.iter().flat_map(|line| &line.commands) {
        let Some(name) = command.words.first() else { continue };
        assert!(COMMANDS.contains(&name.as_str()), "{name} is no command\n{script}");
        if name == "goto" && command.words[1] != "${chosen}" {
            assert!(
                labels.contains_key(&command.words[1]),
                "goto {} goes nowhere\n{script}",
                command.words[1]
            );
        }
    }
    // The last thing a script does is leave for the disk.
    assert!(script.ends_with("\nexit 1\n") || script.ends_with("\nexit 0\n"), "{script}");
}

/// Every field a client or an operator fills, one after the other, filled with `value`.
fn with_hostile(field: usize, value: &str) -> Option<(Library, Identity, Policy)> {
    let mut pe = winpe();
    let mut tux = linux();
    let mut disk = iso();
    let mut program = efi();
    let mut script = own_script();
    let mut lab = template(TEMPLATE);
    let mut who = uefi();
    let mut policy = Policy::default();
    let text = || value.to_owned();
    match field {
        0 => who.serial = Some(text()),
        1 => who.asset = Some(text()),
        2 => who.manufacturer = Some(text()),
        3 => who.product = Some(text()),
        4 => who.build_arch = Some(text()),
        5 => pe.title = text(),
        6 => tux.args = text(),
        7 => program.args = text(),
        8 => pe.args = text(),
        9 => pe.warnings = vec![text()],
        10 => tux.name = text(),
        11 => tux.boot = Some(BootFiles::Linux { kernel: text(), initrds: vec!["i".into()] }),
        12 => tux.boot = Some(BootFiles::Linux { kernel: "k".into(), initrds: vec![text()] }),
        13 => disk.boot = Some(BootFiles::Iso { iso: text() }),
        14 => program.boot = Some(BootFiles::Efi { program: text() }),
        15 => script.boot = Some(BootFiles::Script { script: text() }),
        16..=18 => {
            if let Some(BootFiles::Winpe { wimboot, wim, extra }) = &mut pe.boot {
                match field {
                    16 => *wimboot = WimbootAt::Image(text()),
                    17 => *wim = text(),
                    _ => extra[0] = text(),
                }
            }
        }
        19 => disk.name = text(),
        20 => policy.menu_default = MenuDefault::Image(text()),
        21 => tux.title = text(),
        22 => who.circuit = Some(crate::jobs::rule::CircuitMark::of(value.as_bytes())),
        23 => tux.group = Some(text()),
        24 => lab.name = text(),
        25 => lab.title = text(),
        26 => who.serial = Some(text()),
        27 => who.asset = Some(text()),
        28 => who.manufacturer = Some(text()),
        29 => who.product = Some(text()),
        _ => return None,
    }
    if field == 23 && tux.group.as_deref().is_none_or(|group| group.trim().is_empty()) {
        // No group at all is another structure, and may be.
        tux.group = Some("x".into());
    }
    Some((Library([tux, program, script, disk, pe, lab].map(Arc::new).into()), who, policy))
}

/// Every byte inside a word, every punctuation and control byte also alone, in front, behind and as a word of its
/// own, and the sequences that mean something.
fn hostile_values() -> Vec<String> {
    let mut values = Vec::new();
    for c in (0..=255u8).map(char::from) {
        values.push(format!("x{c}y"));
        if !c.is_alphanumeric() && c.is_ascii() {
            values.extend([format!("{c}"), format!("{c}x"), format!("x{c}"), format!("x {c} y")]);
        }
    }
    for sequence in [
        "${net0/mac}",
        "$${net0/mac}",
        "${${x}}",
        "x ${",
        "$\u{0}{x}",
        "a || shell",
        "a && shell",
        "a ; shell",
        "|| shell",
        "&& shell",
        "; shell",
        "# x",
        "x #",
        "#",
        "x\nshell",
        "x\r\nshell",
        "x\n:local\nshell",
        "\nshell\n",
        ":local",
        "--",
        "--name x",
        "-x",
        "--timeout",
        "x\\",
        "\\",
        "\\\nshell",
        "x \\\\",
        "x\u{b}shell",
        "x\u{c}shell",
        "\u{0}shell",
        "\u{2028}shell",
        "\u{85}shell",
        "../../etc/passwd",
        "a%0Ashell",
        "http://evil/x",
        "x http://evil/x",
        "index=9 || shell",
        "caf\u{e9} \u{1f642}",
        " ",
        "  x  ",
        "exit",
        "tries",
    ] {
        values.push(sequence.to_owned());
    }
    values
}

#[test]
fn no_value_changes_the_structure_of_a_script() {
    let mut values = hostile_values();
    values.extend(["a || ${ \\\n".repeat(1_000), "${".repeat(5_000)]);
    let reasons = |reason: &str| {
        let refused = written(|out| refused(&bios(), JobId(9), &reason, out));
        [structure(&rejection(&bios(), reason)), structure(&refused)]
    };
    let harmless = reasons("x");
    for value in values.iter().filter(|value| !value.trim().is_empty()) {
        assert_eq!(reasons(value), harmless, "{value:?}");
    }
    let book = Published::new();
    let spec = JobSpec::new(Action::Menu, Selector::Mac(MAC));
    let job = book.add(spec, &Library::default(), now()).unwrap();
    for field in 0.. {
        let Some(machine) = with_hostile(field, "harmless") else { break };
        let harmless = structure(&scripts_with(field, &job, &machine));
        for value in &values {
            let Some(machine) = with_hostile(field, value) else { break };
            if field == 18 && value.len() > 1_000 {
                // A name that is too long for wimboot is left out, and said to be.
                continue;
            }
            let script = scripts_with(field, &job, &machine);
            let hostile = structure(&script);
            assert_eq!(
                without_warnings(&hostile),
                without_warnings(&harmless),
                "field {field}, {value:?}\n{script}"
            );
        }
    }
}

/// Texts that would do something if they got through, each ending in another way of reaching the next line.
const HOSTILE: [&str; 5] = [
    "-x || shell && exit ; # ${net0/mac} ${${x}} :label\nshell\r\nexit\\",
    "#\u{b}shell\u{c}shell \\\n:local\nshell",
    "--name vmlinuz http://10.77.0.1:4433/evil || goto evil",
    ":failed ; shell ; exit 1 \\\\",
    "caf\u{e9} \u{2028}shell %0Ashell {{mac}} `\"'$",
];

/// What real iPXE executes in the lab, beside the script with an "x" in the same place: see `tests/it/scripts.rs`.
#[test]
fn hostile_text_in_every_field() {
    let book = Published::new();
    let spec = JobSpec::new(Action::Menu, Selector::Mac(MAC));
    let job = book.add(spec, &Library::default(), now()).unwrap();
    let mut all = String::new();
    for field in 0.. {
        let Some(machine) = with_hostile(field, "x") else { break };
        let harmless = job_script(field, &job, &machine);
        let mut seen = vec![harmless.clone()];
        all.push_str(&format!("=== {field} harmless\n{harmless}"));
        for (index, value) in HOSTILE.iter().enumerate() {
            // A name that is longer than wimboot can take would not be in the script at all.
            let value: String = value.chars().take(if field == 18 { 24 } else { usize::MAX }).collect();
            let Some(machine) = with_hostile(field, &value) else { break };
            let script = job_script(field, &job, &machine);
            if !seen.contains(&script) {
                all.push_str(&format!("=== {field} hostile {index}\n{script}"));
                seen.push(script);
            }
        }
    }
    check("hostile_scripts", &all);
}

/// The script of a job that has to do with a field: the image's, the menu, or one that waits.
fn job_script(field: usize, job: &Job, (library, who, policy): &(Library, Identity, Policy)) -> String {
    let action = match (field, image_of(field)) {
        (20..=21 | 23, _) => Action::Menu,
        (_, Some(index)) => Action::Image(library.0[index].name.clone()),
        (_, None) => Action::Wait,
    };
    let key = TokenKey::new([7; 32]);
    let job = Job { action, ..job.clone() };
    let mut script = String::new();
    let ctx = context(&key, policy, Hints::default());
    write(&plan(Decision::Job(&job), library, who, &ctx), library, who, &ctx, &mut script);
    script
}

/// The scripts that a field can reach, one after the other; each is checked by itself too.
fn scripts_with(field: usize, job: &Job, (library, who, policy): &(Library, Identity, Policy)) -> String {
    let image = image_of(field);
    let action = match image {
        Some(index) => Action::Image(library.0[index].name.clone()),
        None => Action::Wait,
    };
    let key = TokenKey::new([7; 32]);
    let ctx = context(&key, policy, Hints::default());
    let job = Job { action, ..job.clone() };
    let mut all = String::new();
    for decision in [Decision::Job(&job), Decision::NoJob] {
        let mut script = String::new();
        let composed = write(&plan(decision, library, who, &ctx), library, who, &ctx, &mut script);
        well_formed(&script);
        assert!(matches!(composed.what, Offer::Image | Offer::Wait | Offer::Menu), "{composed:?}");
        all.push_str(&script);
    }
    all
}

/// Which image of `with_hostile`'s library a field belongs to.
fn image_of(field: usize) -> Option<usize> {
    match field {
        5 | 8 | 9 | 16..=18 => Some(4),
        6 | 10..=12 | 21 | 23 => Some(0),
        7 | 14 => Some(1),
        13 | 19 => Some(3),
        15 => Some(2),
        24..=29 => Some(5),
        _ => None,
    }
}

/// Whether a value loses words is said on the screen, so those lines come and go. Which image boots at the end of
/// a menu's time-out, and the words for wimboot and the name of a file, are what those fields are for.
fn without_warnings(
    structure: &[(Option<String>, Vec<(&'static str, Vec<String>)>)],
) -> Vec<(Option<String>, Vec<(&'static str, Vec<String>)>)> {
    let mut kept = structure.to_vec();
    kept.retain(|(label, commands)| {
        let only_echo = commands.iter().all(|(_, words)| words == &["echo"]);
        label.is_some() || !only_echo
    });
    for (_, words) in kept.iter_mut().flat_map(|(_, commands)| commands) {
        match words.first().map(String::as_str) {
            Some("initrd") if words[1] == "--name" => {
                let name = &mut words[2];
                assert!(
                    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
                    "{name}"
                );
                assert!(!name.starts_with('-'));
                *name = "NAME".into();
            }
            Some("set") if words[1] == "default" => words[2] = "DEFAULT".into(),
            // A word that is compared stays one word.
            Some("iseq") => {
                words.iter_mut().skip(1).filter(|w| !w.contains("${")).for_each(|w| *w = "W".into())
            }
            _ => {}
        }
    }
    kept
}

#[test]
fn the_model_of_ipxe_sees_an_injection() {
    let base = structure("#!ipxe\necho hello\nkernel http://a/b x || goto failed\n");
    for injected in [
        "#!ipxe\necho hello\nshell\nkernel http://a/b x || goto failed\n",
        "#!ipxe\necho hello || shell\nkernel http://a/b x || goto failed\n",
        "#!ipxe\necho hello ${password}\nkernel http://a/b x || goto failed\n",
        "#!ipxe\necho -n hello\nkernel http://a/b x || goto failed\n",
        "#!ipxe\necho hello\\\nkernel http://a/b x || goto failed\n",
        "#!ipxe\necho hello\nkernel http://a/b # x || goto failed\n",
        "#!ipxe\necho hello\n:x kernel http://a/b x || goto failed\n",
        "#!ipxe\necho hello\nkernel --name y http://a/b x || goto failed\n",
    ] {
        assert_ne!(structure(injected), base, "{injected}");
    }
    assert_eq!(structure("#!ipxe\necho good bye\nkernel http://c/d y z || goto failed\n"), base);
}
