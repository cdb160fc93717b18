//! Every rule with the evidence that proves it, told to the recorder as the server tells it, and what is said then.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::{Bounds, History};
use super::*;
use crate::jobs::evidence::{Asker, Cause, Evidence, Seen, Way, Why};
use crate::jobs::job::{Action, Confirm, JobId, JobSpec, Selector};
use crate::jobs::token::BootId;
use crate::wire::{Arch, MacAddr};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const URL: &str = "http://10.77.0.1:4433/ipxe?mac=52:54:00:12:34:56";
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

fn at(seconds: f64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs_f64(1_800_000_000.0 + seconds)
}

/// A piece of evidence and what it comes with.
#[derive(Clone)]
struct Bit {
    seen: Seen,
    address: bool,
    transfer: Option<TransferFacts>,
    why: Option<Why>,
}

impl From<Seen> for Bit {
    fn from(seen: Seen) -> Self {
        Self { seen, address: false, transfer: None, why: None }
    }
}

impl Bit {
    /// It shows the machine's address.
    fn addressed(seen: Seen) -> Self {
        Self { address: true, ..seen.into() }
    }
}

fn offered(arch: Arch, file: &str) -> Bit {
    let asker = Asker::Firmware;
    Seen::DhcpOffered { asker, arch: Some(arch), relay: None, file: file.into() }.into()
}

fn bios() -> Bit {
    offered(Arch::BIOS, "undionly.kpxe")
}

fn uefi() -> Bit {
    offered(Arch::UEFI_X64, "snponly.efi")
}

fn ipxe(file: &str) -> Bit {
    let asker = Asker::Ipxe;
    Seen::DhcpOffered { asker, arch: Some(Arch::UEFI_X64), relay: None, file: file.into() }.into()
}

fn ignored(reason: &str, boot_server: bool) -> Bit {
    ignored_of(Asker::Firmware, reason, boot_server)
}

fn ignored_of(asker: Asker, reason: &str, boot_server: bool) -> Bit {
    let (asker, arch, relay) = (Some(asker), Some(Arch::UEFI_X64), None);
    Seen::DhcpIgnored { reason: reason.into(), asker, arch, relay, boot_server }.into()
}

fn other(file: Option<&str>, leases: bool, pxe: bool, sends_to_4011: bool) -> Bit {
    let file = file.map(str::to_owned);
    Seen::OtherOffered { server: OTHER, file, next_server: None, leases, pxe, sends_to_4011 }.into()
}

fn chosen() -> Bit {
    Bit::addressed(Seen::ServerChosen { server: Some(OTHER) })
}

fn leased() -> Bit {
    Bit::addressed(Seen::AddressGiven { relay: None })
}

fn loader() -> Bit {
    Seen::LoaderFetched { name: "snponly.efi".into(), bytes: 300_000, over: Over::Tftp }.into()
}

fn tftp_failed(file: &str, bytes: u64, reason: &str, blksize: u16, windowsize: u16) -> Bit {
    let facts =
        TransferFacts { blksize, windowsize, took_ms: 9_000, rtt_us: None, resends: 6, way: Way::Frame };
    let seen =
        Seen::TransferFailed { job: None, file: file.into(), bytes, reason: reason.into(), over: Over::Tftp };
    Bit { transfer: Some(facts), ..seen.into() }
}

fn script(offer: &str, cause: Cause, said: &str) -> Bit {
    let image =
        (offer == "image" || offer == "misfit" || offer == "unavailable").then(|| "debian".to_owned());
    let job = matches!(cause, Cause::Job | Cause::HadItsJob | Cause::AttemptsUsed | Cause::Looped)
        .then_some(JobId(7));
    let why = Some(Why { cause, said: said.into() });
    Bit { why, ..Seen::ScriptAsked { job, offer: offer.into(), image }.into() }
}

fn given() -> Bit {
    script("image", Cause::Job, "")
}

fn started(file: &str) -> Bit {
    Seen::FileStarted { job: Some(JobId(7)), image: "debian".into(), file: file.into(), over: Over::Http }
        .into()
}

fn done(file: &str, last: bool) -> Bit {
    let (job, image) = (Some(JobId(7)), "debian".into());
    Seen::FileDone { job, image, file: file.into(), bytes: 9 << 20, part: false, last, over: Over::Http }
        .into()
}

fn cut(reason: &str) -> Bit {
    let (job, file) = (Some(JobId(7)), "initrd.img".into());
    Seen::TransferFailed { job, file, bytes: 5 << 20, reason: reason.into(), over: Over::Http }.into()
}

fn refused(path: &str, status: u16, reason: &str) -> Bit {
    Seen::HttpRefused { path: path.into(), status, reason: reason.into() }.into()
}

/// What is said so long after the last of these, told a second apart.
fn told(story: &[Bit], silent: f64, job: Option<&Job>) -> Verdict {
    let history = History::new(Bounds::default());
    for (n, bit) in story.iter().enumerate() {
        let mut evidence = Evidence::new(at(n as f64), bit.seen.clone());
        evidence.mac = Some(MAC);
        evidence.address = bit.address.then_some(Ipv4Addr::new(10, 77, 0, 100));
        evidence.boot = matches!(bit.seen, Seen::ScriptAsked { .. }).then_some(BootId(1));
        evidence.transfer = bit.transfer;
        evidence.why.clone_from(&bit.why);
        history.note(evidence);
    }
    let boots = history.boots(MAC);
    assert_eq!(boots.len(), 1, "{boots:?}");
    let verdict = boots[0].verdict(&Context { now: at(story.len() as f64 - 1.0 + silent), job });
    // Packed and stored it says the same.
    let body = super::super::record(&boots);
    let again = super::super::read_record(&body)[0]
        .verdict(&Context { now: at(story.len() as f64 - 1.0 + silent), job });
    assert_eq!(verdict, again);
    verdict
}

/// Rule, evidence, words of the sentence, words of the next step, first code on the screen.
type Case = (&'static str, Vec<Bit>, &'static [&'static str], &'static str, &'static str);

fn cases() -> Vec<Case> {
    let silent = "the machine fell silent";
    let gave_up = "the machine gave up with TFTP error 8";
    vec![
        (
            "confirmed",
            vec![uefi(), given(), done("k", true), Seen::CalledBack { job: JobId(7) }.into()],
            &["booted", "called back"],
            "nothing",
            "",
        ),
        (
            "failure-called",
            vec![
                given(),
                done("k", true),
                Seen::FailureCalled { job: JobId(7), reason: "no disk".into() }.into(),
            ],
            &["failed", "no disk"],
            "rearm j7",
            "",
        ),
        (
            "cut-at-the-line",
            vec![
                given(),
                started("initrd.img"),
                cut("refused at the point of no return: another boot of this machine had the job"),
            ],
            &["held back", "another boot of this machine had the job"],
            "rearm j7",
            "ipxe.org/0f0a6039",
        ),
        (
            "answer-withheld",
            vec![
                given(),
                done("k", true),
                Seen::AnswerWithheld {
                    name: "preseed.cfg".into(),
                    reason: "no DHCP exchange of the asking address was seen".into(),
                }
                .into(),
            ],
            &["preseed.cfg", "no DHCP exchange"],
            "DHCP",
            "",
        ),
        (
            "delivered-unconfirmed",
            vec![uefi(), given(), started("k"), done("k", true)],
            &["image debian", "may have started", "nothing confirms"],
            "rearm j7",
            "",
        ),
        (
            "token-expired",
            vec![given(), refused("debian/vmlinuz", 403, "the token has expired")],
            &["debian/vmlinuz", "expired"],
            "boot it again",
            "ipxe.org/020c6...",
        ),
        (
            "image-missing-file",
            vec![given(), refused("debian/initrd.img", 404, "the library has no such file")],
            &["debian/initrd.img", "404"],
            "image show debian",
            "ipxe.org/2d0c613b",
        ),
        (
            "image-refused",
            vec![
                given(),
                refused(
                    "debian/vmlinuz",
                    403,
                    "the token's job was cancelled, has failed, or was armed anew since the boot began",
                ),
            ],
            &["refused with 403", "was cancelled"],
            "boot it again",
            "ipxe.org/020c6...",
        ),
        (
            "image-cut",
            vec![given(), started("initrd.img"), cut("the connection was reset")],
            &["initrd.img", "5.0 MiB", "reset"],
            "link",
            "ipxe.org/0f0a6039",
        ),
        (
            "image-cut-by-tftp",
            vec![uefi(), leased(), loader(), tftp_failed("winpe/boot.wim", 40 << 20, silent, 1428, 16)],
            &["winpe/boot.wim", "40.0 MiB", "silent"],
            "max_windowsize",
            "PXE-E18",
        ),
        (
            "image-stalled",
            vec![given(), started("initrd.img")],
            &["initrd.img", "fell silent"],
            "screen",
            "ipxe.org/4c0a6035",
        ),
        (
            "image-in-part",
            vec![given(), started("vmlinuz"), done("vmlinuz", false)],
            &["vmlinuz", "never asked for the next"],
            "memory",
            "",
        ),
        (
            "script-no-image",
            vec![uefi(), given()],
            &["script of image debian", "never asked for the first file"],
            "DNS",
            "ipxe.org/4c0a6035",
        ),
        (
            "local-failed",
            vec![
                script("local", Cause::HadItsJob, "x"),
                Seen::LocalBack { strategy: "sanboot".into() }.into(),
            ],
            &["sanboot", "did not boot"],
            "boot order",
            "",
        ),
        (
            "looped",
            vec![script(
                "local",
                Cause::Looped,
                "stopped: the machine asked for it 6 times within 30 minutes",
            )],
            &["started over 5 times", "j7", "6 times"],
            "rearm j7",
            "",
        ),
        (
            "attempts-used",
            vec![script("local", Cause::AttemptsUsed, "3 of 3 boots stopped before they ran")],
            &["out of attempts", "3 of 3"],
            "rearm j7",
            "",
        ),
        (
            "had-its-job",
            vec![script(
                "local",
                Cause::HadItsJob,
                "the last of initrd.img left the server: what it boots may have started",
            )],
            &["had its job already", "j7", "initrd.img left"],
            "rearm j7",
            "",
        ),
        ("rejected", vec![script("denied", Cause::Rejected, "")], &["rejected"], "machine approve", ""),
        ("excluded", vec![script("denied", Cause::Excluded, "")], &["exclude list"], "exclude", ""),
        ("denied-by-policy", vec![script("denied", Cause::Policy, "")], &["policy denies"], "job add", ""),
        (
            "misfit",
            vec![script(
                "misfit",
                Cause::Job,
                "it is built for 64-bit x86, and this machine's firmware is 64-bit ARM",
            )],
            &[
                "Image debian does not fit",
                "built for 64-bit x86, and this machine's firmware is 64-bit ARM).",
            ],
            "architecture",
            "",
        ),
        (
            "unavailable",
            vec![script("unavailable", Cause::Job, "the image is not in the library any more")],
            &["Image debian cannot be had", "own disk (the image is not in the library any more)."],
            "image list",
            "",
        ),
        ("refused", vec![script("refused", Cause::Job, "")], &["may not be had now"], "job show", ""),
        (
            "pending",
            vec![script("pending", Cause::Policy, "")],
            &["waits for approval"],
            "machine approve",
            "",
        ),
        ("waits", vec![script("wait", Cause::Policy, "")], &["waits for a job"], "job add", ""),
        (
            "queued",
            vec![script("queued", Cause::Job, "")],
            &["Others come first", "off or gone since"],
            "boot it again",
            "",
        ),
        ("not-recorded", vec![script("busy", Cause::Job, "")], &["cannot record"], "disk", ""),
        ("menu", vec![script("menu", Cause::Policy, "")], &["menu"], "job add", ""),
        ("shell", vec![script("shell", Cause::Job, "")], &["shell"], "exit", ""),
        (
            "sent-to-its-disk",
            vec![script("local", Cause::Policy, "")],
            &["policy", "own disk"],
            "job add",
            "",
        ),
        (
            "identity-not-told",
            vec![ipxe(URL), leased(), Seen::IdentityAsked.into()],
            &["asked who it is"],
            "screen",
            "",
        ),
        (
            "other-servers-file",
            vec![
                bios(),
                other(Some("pxelinux.0"), true, false, false),
                chosen(),
                Seen::TftpRefused { file: "/pxelinux.0".into(), reason: "file not found".into() }.into(),
            ],
            &["/pxelinux.0", "10.0.0.5", "not ours"],
            "66 and 67",
            "PXE-E3B",
        ),
        (
            "refused-by-tftp",
            vec![
                uefi(),
                chosen(),
                Seen::TftpRefused { file: "gss/boot.wim".into(), reason: "this machine had its job".into() }
                    .into(),
            ],
            &["gss/boot.wim", "refused: this machine had its job"],
            "nothing, if that is what it should do",
            "PXE-E23",
        ),
        (
            "missing-file",
            vec![
                uefi(),
                chosen(),
                Seen::TftpRefused { file: "boot/x.efi".into(), reason: "file not found".into() }.into(),
            ],
            &["boot/x.efi", "file not found", "offered snponly.efi"],
            "option 67",
            "PXE-E23",
        ),
        (
            "loader-not-acknowledged",
            vec![
                bios(),
                leased(),
                Seen::TftpAsked { file: "undionly.kpxe".into() }.into(),
                tftp_failed("undionly.kpxe", 0, silent, 1456, 1),
            ],
            &["undionly.kpxe", "never acknowledged"],
            "another port than 69",
            "PXE-E32",
        ),
        (
            "loader-given-up",
            vec![
                bios(),
                leased(),
                Seen::TftpAsked { file: "ipxe.pxe".into() }.into(),
                tftp_failed("ipxe.pxe", 4096, gave_up, 1456, 1),
            ],
            &["machine itself ended", "TFTP error 8"],
            "too big",
            "PXE-E36",
        ),
        (
            "loader-cut",
            vec![
                uefi(),
                leased(),
                Seen::TftpAsked { file: "snponly.efi".into() }.into(),
                tftp_failed("snponly.efi", 81_920, silent, 8192, 4),
            ],
            &["snponly.efi", "80.0 KiB", "6 resends"],
            "MTU below 1500",
            "PXE-E18",
        ),
        (
            "no-lease",
            vec![bios()],
            &["no DHCP server was heard giving it an address"],
            "mode = \"full\"",
            "PXE-E52",
        ),
        (
            "ipxe-no-script",
            vec![uefi(), leased(), loader(), ipxe(URL), leased()],
            &["told to ask http://10.77.0.1:4433/ipxe", "never did"],
            "TCP 4433 to 10.77.0.1",
            "ipxe.org/4c0a6035",
        ),
        (
            "loader-without-http",
            vec![ipxe("undionly.kpxe"), leased(), loader()],
            &["cannot do HTTP", "undionly.kpxe"],
            "ipxe",
            "",
        ),
        (
            "loader-no-script",
            vec![uefi(), leased(), Seen::TftpAsked { file: "snponly.efi".into() }.into(), loader()],
            &["fetched the loader snponly.efi", "did not start"],
            "Secure Boot",
            "",
        ),
        (
            "loader-under-way",
            vec![uefi(), leased(), Seen::TftpAsked { file: "snponly.efi".into() }.into()],
            &["snponly.efi", "has not come to an end"],
            "firewalls",
            "PXE-E18",
        ),
        (
            "boot-server-not-answered",
            vec![uefi(), chosen(), ignored("no-boot", true)],
            &["port 4011", "no loader for uefi-x64"],
            "[loaders]",
            "PXE-E16",
        ),
        (
            "left-alone",
            vec![ignored("silent", false)],
            &["left alone, as configured", "policy for such machines is silence"],
            "job add",
            "PXE-E16",
        ),
        (
            "not-answered",
            vec![ignored("pool-exhausted", false)],
            &["not answered", "every address of its pool is taken"],
            "range",
            "PXE-E16",
        ),
        (
            "sent-to-4011-of-another",
            vec![bios(), other(None, true, true, true), chosen()],
            &["10.0.0.5", "option 60", "4011"],
            "option 60",
            "PXE-E55",
        ),
        (
            "left-to-another",
            vec![ignored("deferred", false), other(Some("pxelinux.0"), false, true, false)],
            &["10.0.0.5", "left to that server"],
            "add a job",
            "PXE-E16",
        ),
        (
            "other-server-won",
            vec![bios(), other(Some("pxelinux.0"), true, false, false), chosen()],
            &[
                "got our offer, never asked for the loader",
                "another server's option 67 won",
                "10.0.0.5 answered too",
                "pxelinux.0",
            ],
            "10.0.0.5",
            "PXE-E53",
        ),
        (
            "offer-not-taken",
            vec![Bit { address: true, ..bios() }],
            &["never took them", "does not reach"],
            "switch",
            "PXE-E51",
        ),
        (
            "http-boot-no-loader",
            vec![
                Bit::addressed(Seen::DhcpOffered {
                    asker: Asker::Http,
                    arch: Some(Arch::HTTP_X64),
                    relay: None,
                    file: "http://10.77.0.1:4433/loaders/snponly.efi".into(),
                }),
                leased(),
            ],
            &["http://10.77.0.1:4433/loaders/snponly.efi", "never asked"],
            "TCP 4433",
            "",
        ),
        (
            "boot-server-answered",
            vec![
                uefi(),
                chosen(),
                Seen::BootServerAnswered { arch: Some(Arch::UEFI_X64), file: "snponly.efi".into() }.into(),
            ],
            &["4011", "snponly.efi", "never asked"],
            "UDP 4011 and 69",
            "PXE-E16",
        ),
        (
            "address-no-loader",
            vec![bios(), other(None, true, false, false), chosen()],
            &["has an address from 10.0.0.5", "undionly.kpxe", "never asked"],
            "UDP 69",
            "PXE-E32",
        ),
        ("seen", vec![], &["not enough"], "once more", ""),
    ]
}

#[test]
fn every_rule_speaks_on_its_evidence() {
    for (rule, story, words, next, code) in cases() {
        let verdict = match story.as_slice() {
            [] => Timeline::begin(at(0.0)).verdict(&Context { now: at(3_600.0), job: None }),
            story => told(story, 3_600.0, None),
        };
        assert_eq!(verdict.rule, rule, "{verdict:?}");
        for word in words {
            assert!(verdict.sentence.contains(word), "{rule}: no {word:?} in {:?}", verdict.sentence);
        }
        assert!(verdict.next.contains(next), "{rule}: no {next:?} in {:?}", verdict.next);
        assert_eq!(verdict.codes.first().map_or("", |code| code.code), code, "{rule}: {verdict:?}");
        assert!(!verdict.under_way, "{rule}: an hour later");
        assert!(verdict.sentence.ends_with('.') && verdict.next.ends_with('.'), "{verdict:?}");
    }
}

#[test]
fn every_rule_has_its_evidence_and_its_line_in_the_document() {
    let cases: Vec<&str> = cases().iter().map(|(rule, ..)| *rule).collect();
    let rules: Vec<&str> = rules().map(|rule| rule.name).collect();
    assert_eq!(cases, rules);
    let document = include_str!("../../../docs/EXPLAIN.md");
    for rule in rules.iter().chain(&["never-seen"]) {
        assert!(document.contains(&format!("| `{rule}` |")), "docs/EXPLAIN.md says nothing of {rule}");
    }
}

#[test]
fn ipxe_that_is_left_to_another_server_runs_and_the_other_server_is_named() {
    let asked = || Bit::from(Seen::TftpAsked { file: "snponly.efi".into() });
    let left = ignored_of(Asker::Ipxe, "deferred", false);
    let story =
        [uefi(), leased(), asked(), loader(), other(Some("grub.efi"), true, false, false), left.clone()];
    let verdict = told(&story, 60.0, None);
    assert_eq!(verdict.rule, "left-to-another", "{verdict:?}");
    for words in ["iPXE runs", "10.0.0.5", "grub.efi"] {
        assert!(verdict.sentence.contains(words), "{words}: {verdict:?}");
    }
    assert!(verdict.next.contains("out of the DHCP server 10.0.0.5"), "{verdict:?}");
    // A ROM's first question as well; nothing of ours has run there.
    let verdict = told(&[other(Some("grub.efi"), true, false, false), left], 60.0, None);
    assert_eq!(verdict.rule, "left-to-another", "{verdict:?}");
    assert!(verdict.sentence.contains("grub.efi") && !verdict.sentence.contains("iPXE runs"), "{verdict:?}");
    let silent = ignored_of(Asker::Ipxe, "pool-exhausted", false);
    let verdict = told(&[uefi(), leased(), asked(), loader(), silent], 60.0, None);
    assert_eq!(verdict.rule, "not-answered", "{verdict:?}");
}

#[test]
fn a_lease_with_option_60_alone_is_named_although_our_offer_was_held_back() {
    let story = [other(None, true, true, true), ignored("deferred", false), chosen()];
    let verdict = told(&story, 60.0, None);
    assert_eq!(verdict.rule, "sent-to-4011-of-another", "{verdict:?}");
    assert!(!verdict.sentence.contains("our offer"), "{verdict:?}");
}

#[test]
fn what_was_fetched_under_an_earlier_script_is_not_the_menus() {
    let cancelled = cut("refused at the point of no return: the job is cancelled");
    let story =
        [given(), started("vmlinuz"), done("vmlinuz", false), cancelled, script("menu", Cause::Policy, "")];
    assert_eq!(told(&story, 60.0, None).rule, "menu");
    // The menu's own choice is.
    let story = [script("menu", Cause::Policy, ""), started("vmlinuz"), done("vmlinuz", false)];
    assert_eq!(told(&story, 60.0, None).rule, "image-in-part");
}

#[test]
fn a_machine_that_no_job_wants_is_told_what_it_came_as() {
    let verdict = told(&[script("menu", Cause::Policy, "")], 0.0, None);
    assert!(verdict.sentence.contains(&format!("came as {MAC} and told no UUID")), "{verdict:?}");
    assert!(verdict.next.contains(&format!("job add IMAGE --mac {MAC}")), "{verdict:?}");
    let verdict = told(&[script("menu", Cause::Job, "")], 0.0, None);
    assert!(verdict.sentence.contains("as its job says"), "{verdict:?}");
}

#[test]
fn every_rule_that_the_list_of_faults_names_is_one() {
    let document = include_str!("../../../docs/TROUBLESHOOTING.md");
    let table =
        document.split("## What `explain` calls it").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows: Vec<&str> = table.unwrap_or_default().lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 15, "{rows:?}");
    for row in rows {
        let said = row.split('|').nth(2).unwrap_or_default();
        for name in said.split('`').skip(1).step_by(2) {
            let known = name == "never-seen" || rules().any(|rule| rule.name == name);
            assert!(known, "no rule is called {name}: {row}");
        }
    }
}

#[test]
fn a_boot_that_was_just_heard_may_be_under_way() {
    let verdict = told(&[uefi(), leased(), loader()], 2.0, None);
    assert!(verdict.under_way && verdict.sentence.contains("may be under way"), "{verdict:?}");
    assert_eq!(verdict.rule, "loader-no-script");
    // What is decided needs no waiting.
    assert!(!told(&[ignored("silent", false)], 0.0, None).under_way);
}

#[test]
fn the_other_server_that_answered_first_is_named_so() {
    let story = [ignored("deferred", false), other(Some("x"), true, true, false), bios(), chosen()];
    let verdict = told(&story, 60.0, None);
    assert!(verdict.sentence.contains("10.0.0.5 answered first with x"), "{verdict:?}");
}

#[test]
fn a_lan_with_a_plain_dhcp_server_is_no_rival() {
    let story =
        [uefi(), other(None, true, false, false), chosen(), loader(), ipxe(URL), given(), done("k", true)];
    assert_eq!(told(&story, 60.0, None).rule, "delivered-unconfirmed");
}

#[test]
fn a_job_that_waits_for_a_call_back_says_so() {
    let mut spec = JobSpec::new(Action::Image("debian".into()), Selector::Mac(MAC));
    spec.confirm = Confirm::Callback;
    let job = Job::new(JobId(7), &spec, false, at(0.0));
    let verdict = told(&[given(), done("k", true)], 60.0, Some(&job));
    assert!(verdict.sentence.contains("waits for a call-back"), "{verdict:?}");
    let never = never_seen(Some(&job), at(7_200.0));
    assert!(never.sentence.contains("job j7 has waited for it for 2 h"), "{never:?}");
    assert!(never_seen(None, at(0.0)).codes.iter().any(|code| code.code == "PXE-E61"));
}

#[test]
fn a_retry_that_went_better_is_what_counts() {
    let story = [
        uefi(),
        leased(),
        tftp_failed("snponly.efi", 512, "the machine fell silent", 1468, 1),
        loader(),
        ipxe(URL),
        given(),
        started("k"),
        cut("the connection was reset"),
        started("k"),
        done("k", true),
    ];
    assert_eq!(told(&story, 60.0, None).rule, "delivered-unconfirmed");
}

#[test]
fn text_from_outside_cannot_move_the_cursor() {
    let verdict = told(&[given(), refused("a\u{1b}[2Jb", 404, "x\ny")], 60.0, None);
    assert!(!verdict.to_string().contains('\u{1b}'), "{verdict}");
    assert_eq!(verdict.to_string().lines().count(), 3, "{verdict}");
}

/// Debian's iPXE of a BIOS ROM beside this server in proxy mode, with nobody to give addresses: it asks again and again.
#[test]
fn an_ipxe_that_nobody_gives_an_address_did_not_fail_at_its_script() {
    let verdict = told(&[ipxe(URL), ipxe(URL), ipxe(URL)], 60.0, None);
    assert_eq!((verdict.rule, verdict.codes[0].code), ("no-lease", "ipxe.org/040ee119"), "{verdict:?}");
}

/// A job for this machine, with one image or a sequence of them.
fn job(then: &[&str], step: u32, stage: crate::jobs::job::Stage) -> Job {
    let image = |name: &str| Action::Image(name.into());
    let spec = JobSpec {
        then: then.iter().map(|name| image(name)).collect(),
        ..JobSpec::new(image("debian"), Selector::Mac(MAC))
    };
    let mut job = Job::new(JobId(7), &spec, true, at(0.0));
    (job.step, job.stage) = (step, stage);
    if let Some(action) = job.sequence.get(step as usize) {
        job.action = action.clone();
    }
    job
}

#[test]
fn nobody_is_told_to_wipe_a_disk_again_without_being_told_that_it_does() {
    use crate::jobs::job::Stage;
    let failed =
        [given(), done("k", true), Seen::FailureCalled { job: JobId(7), reason: "no disk".into() }.into()];
    let alone = told(&failed, 60.0, Some(&job(&[], 0, Stage::Failed)));
    assert!(alone.next.contains("rearm j7 (its next boot may then wipe the disk again)"), "{alone:?}");
    // A later step of a sequence failed: re-armed it begins with the first, which wipes.
    let later = told(&failed, 60.0, Some(&job(&["report"], 1, Stage::Failed)));
    for words in
        ["begins with image debian again", "may wipe the disk again", "job add IMAGE --mac 52:54:00:12:34:56"]
    {
        assert!(later.next.contains(words), "{words}: {later:?}");
    }
    // And whose sequence goes on is no machine whose next boot is its disk's.
    let passed = [given(), done("k", true)];
    let on = told(&passed, 60.0, Some(&job(&["report"], 1, Stage::Armed)));
    assert_eq!(on.rule, "delivered-unconfirmed");
    assert!(on.next.contains("goes on with image report") && !on.next.contains("rearm"), "{on:?}");
    let over = told(&passed, 60.0, Some(&job(&[], 0, Stage::Running)));
    assert!(over.next.contains("next boot is a local one") && over.next.contains("rearm j7 ("), "{over:?}");
}

#[test]
fn an_installer_that_asks_twice_for_its_answers_has_them() {
    let name = || "ks.cfg".to_owned();
    let had = Bit::from(Seen::AnswerGiven { name: name() });
    let withheld = |reason: &str| Bit::from(Seen::AnswerWithheld { name: name(), reason: reason.into() });
    let twice = "it is given once per boot, and was already";
    let verdict = told(&[given(), done("k", true), had, withheld(twice)], 60.0, None);
    assert_eq!(verdict.rule, "delivered-unconfirmed", "{verdict:?}");
    let verdict = told(&[given(), done("k", true), withheld(twice)], 60.0, None);
    assert!(verdict.next.starts_with("nothing, if what it booted goes on"), "{verdict:?}");
    let record = "it is given once per boot, and the machine is not on record, so nothing would remember it";
    let verdict = told(&[given(), done("k", true), withheld(record)], 60.0, None);
    assert!(
        verdict.next.starts_with("bootstorm machine set 52:54:00:12:34:56 puts it on record"),
        "{verdict:?}"
    );
    let menu = "it is given once per boot, and a choice from the menu is nobody's job: give the machine one";
    let verdict = told(&[given(), done("k", true), withheld(menu)], 60.0, None);
    assert!(verdict.next.starts_with("bootstorm job add IMAGE"), "{verdict:?}");
}

#[test]
fn what_was_got_over_is_not_what_stopped_it() {
    // Shim's own files are not there as a rule, and Secure Boot is what then stops it.
    let http =
        |name: &str| Bit::from(Seen::LoaderFetched { name: name.into(), bytes: 300_000, over: Over::Http });
    let story = [
        offered(Arch(16), "http://10.77.0.1:4433/loaders/ipxe-shim.efi"),
        http("ipxe-shim.efi"),
        refused("/loaders/revocations_sku.efi", 404, "not found"),
        http("ipxe.efi"),
        refused("/loaders/mmx64.efi", 404, "not found"),
    ];
    let verdict = told(&story, 60.0, None);
    assert_eq!(verdict.rule, "loader-no-script", "{verdict:?}");
    assert!(verdict.next.contains("Secure Boot"), "{verdict:?}");
    // The script's second try has its file.
    let again = [given(), refused("debian/vmlinuz", 404, "not found"), started("vmlinuz")];
    assert_eq!(told(&again, 1_000.0, None).rule, "image-stalled");
    let cut_once =
        [given(), started("initrd.img"), cut("the machine closed the connection"), started("initrd.img")];
    assert_eq!(told(&cut_once, 1_000.0, None).rule, "image-stalled");
    // A loader in a folder is a loader.
    let file = "x86_64-sb/ipxe-shim.efi";
    let story =
        [offered(Arch::UEFI_X64, file), chosen(), tftp_failed(file, 0, "the machine fell silent", 1468, 1)];
    let verdict = told(&story, 60.0, None);
    assert_eq!(verdict.rule, "loader-not-acknowledged", "{verdict:?}");
    assert!(verdict.next.contains("single_port"), "{verdict:?}");
    // So is what it loads next from there, and a WIM beside its own program is none.
    let beside = "x86_64-sb/ipxe.efi";
    let next =
        [offered(Arch::UEFI_X64, file), chosen(), tftp_failed(beside, 0, "the machine fell silent", 1468, 1)];
    assert_eq!(told(&next, 60.0, None).rule, "loader-not-acknowledged");
    let own = [
        offered(Arch::UEFI_X64, "gss/bootmgfw.efi"),
        chosen(),
        tftp_failed("gss/boot.wim", 9 << 20, "the machine fell silent", 1456, 4),
    ];
    assert_eq!(told(&own, 60.0, None).rule, "image-cut-by-tftp");
}

#[test]
fn who_waited_and_has_gone_is_not_said_to_wait() {
    let waits = [script("wait", Cause::Policy, "")];
    assert!(told(&waits, 30.0, None).next.contains("goes on by itself"));
    let gone = told(&waits, 3_600.0, None);
    assert!(gone.sentence.contains("off or gone since") && gone.next.contains("boot it again"), "{gone:?}");
}
