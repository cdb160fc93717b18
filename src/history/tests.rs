//! Stories of boots, told to the recorder and read back.

use std::time::UNIX_EPOCH;

use super::*;
use crate::jobs::evidence::{Cause, Over, TransferFacts, Way, Why};
use crate::jobs::job::JobId;
use crate::wire::Arch;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

fn at(seconds: f64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs_f64(1_800_000_000.0 + seconds)
}

fn of(mac: MacAddr, seconds: f64, seen: Seen) -> Evidence {
    Evidence { mac: Some(mac), address: Some(ADDRESS), ..Evidence::new(at(seconds), seen) }
}

fn dhcp(asker: Asker, file: &str) -> Seen {
    Seen::DhcpOffered { asker, arch: Some(Arch::UEFI_X64), relay: None, file: file.into() }
}

fn loader() -> Seen {
    Seen::LoaderFetched { name: "snponly.efi".into(), bytes: 300_000, over: Over::Tftp }
}

fn ignored(reason: &str) -> Seen {
    Seen::DhcpIgnored { reason: reason.into(), asker: None, arch: None, relay: None, boot_server: false }
}

fn script(offer: &str) -> Seen {
    let image = (offer == "image").then(|| "debian".to_owned());
    Seen::ScriptAsked { job: image.is_some().then_some(JobId(7)), offer: offer.into(), image }
}

fn started(file: &str) -> Seen {
    Seen::FileStarted { job: Some(JobId(7)), image: "debian".into(), file: file.into(), over: Over::Http }
}

fn done(file: &str, bytes: u64, last: bool) -> Seen {
    Seen::FileDone {
        job: Some(JobId(7)),
        image: "debian".into(),
        file: file.into(),
        bytes,
        part: false,
        last,
        over: Over::Http,
    }
}

/// A whole UEFI boot from `start` on, as the rooms that see it report it: the TFTP side knows only an address, and
/// only what comes under a token has a boot.
fn whole_boot(history: &History, start: f64, boot: u64) {
    let boot = Some(BootId(boot));
    history.note(of(MAC, start, dhcp(Asker::Firmware, "snponly.efi")));
    history.note(Evidence { address: Some(ADDRESS), ..Evidence::new(at(start + 1.0), loader()) });
    history.note(of(MAC, start + 2.0, dhcp(Asker::Ipxe, "http://10.77.0.1:4433/ipxe")));
    history.note(Evidence { boot, ..of(MAC, start + 2.5, script("image")) });
    history.note(Evidence { boot, ..Evidence::new(at(start + 3.0), started("vmlinuz")) });
    history.note(Evidence { boot, ..Evidence::new(at(start + 3.5), done("vmlinuz", 9 << 20, false)) });
    history.note(Evidence { boot, ..of(MAC, start + 3.6, started("initrd.img")) });
    history.note(Evidence { boot, ..of(MAC, start + 5.0, done("initrd.img", 30 << 20, true)) });
}

#[test]
fn a_whole_boot_is_one_timeline() {
    let history = History::default();
    whole_boot(&history, 0.0, 1);
    let boots = history.boots(MAC);
    assert_eq!(boots.len(), 1, "{boots:?}");
    let boot = &boots[0];
    assert_eq!((boot.outcome, boot.job, boot.boot), (Outcome::Running, Some(JobId(7)), Some(BootId(1))));
    assert_eq!((boot.image.as_deref(), boot.steps.len()), (Some("debian"), 8));
    assert!(boot.steps[1].by_address && !boot.steps[0].by_address);
    let verdict = boot.verdict(&Context { now: at(65.0), job: None });
    let text = format!("{boot}{verdict}");
    insta::with_settings!(
        { snapshot_path => "../../tests/snapshots", prepend_module_to_snapshot => false, omit_expression => true },
        { insta::assert_snapshot!("timeline_whole_boot", text); }
    );
}

#[test]
fn a_reboot_is_another_timeline_and_the_newest_comes_first() {
    let history = History::default();
    whole_boot(&history, 0.0, 1);
    whole_boot(&history, 60.0, 2);
    let boots = history.boots(MAC);
    assert_eq!(boots.iter().map(|boot| boot.boot).collect::<Vec<_>>(), [Some(BootId(2)), Some(BootId(1))]);
    // A late word about the first boot goes to the first boot.
    let late = Evidence { boot: Some(BootId(1)), ..of(MAC, 70.0, Seen::CalledBack { job: JobId(7) }) };
    history.note(late);
    assert_eq!(history.boots(MAC).iter().filter(|boot| boot.outcome == Outcome::Confirmed).count(), 1);
    assert_eq!(
        history.boots(MAC).iter().find(|b| b.boot == Some(BootId(1))).unwrap().outcome,
        Outcome::Confirmed
    );
}

#[test]
fn repeated_questions_stay_one_step() {
    let history = History::default();
    for n in 0..1_000 {
        let boot = Some(BootId(n));
        history.note(Evidence { boot, ..of(MAC, n as f64 * 10.0, script("wait")) });
    }
    let boots = history.boots(MAC);
    assert_eq!((boots.len(), boots[0].steps.len(), boots[0].steps[0].count), (1, 1, 1_000));
    assert_eq!(boots[0].outcome, Outcome::Waiting);
}

#[test]
fn a_disk_read_piece_by_piece_is_one_step_with_the_sum() {
    let history = History::default();
    let boot = Some(BootId(1));
    history.note(Evidence { boot, ..of(MAC, 0.0, script("image")) });
    for n in 0..500 {
        let seconds = 1.0 + f64::from(n);
        history.note(Evidence { boot, ..of(MAC, seconds, started("rescue.iso")) });
        history.note(Evidence { boot, ..of(MAC, seconds, done("rescue.iso", 512, n == 0)) });
    }
    let timeline = &history.boots(MAC)[0];
    assert_eq!((timeline.steps.len(), timeline.steps[2].total), (3, 500 * 512));
    assert_eq!(timeline.outcome, Outcome::Running);
}

#[test]
fn where_a_boot_stopped_is_said() {
    let cases = [
        (vec![ignored("silent")], Outcome::Ignored),
        (vec![dhcp(Asker::Firmware, "x")], Outcome::Answered),
        (vec![dhcp(Asker::Firmware, "x"), loader()], Outcome::Loading),
        (vec![dhcp(Asker::Ipxe, "x"), Seen::IdentityAsked], Outcome::Asked),
        (vec![script("local")], Outcome::Local),
        (vec![script("denied")], Outcome::Local),
        (vec![script("menu")], Outcome::Menu),
        (vec![script("menu"), started("k")], Outcome::Fetching),
        (vec![script("pending")], Outcome::Waiting),
        (vec![script("shell")], Outcome::Shell),
        (vec![script("image")], Outcome::Given),
        (vec![script("image"), started("k")], Outcome::Fetching),
        (vec![script("image"), started("k"), done("k", 1, false)], Outcome::Fetching),
        (
            vec![
                script("image"),
                started("k"),
                Seen::TransferFailed {
                    job: None,
                    file: "k".into(),
                    bytes: 5,
                    reason: "the client reset the connection".into(),
                    over: Over::Http,
                },
            ],
            Outcome::Broken,
        ),
        (vec![script("image"), done("k", 1, true), started("k")], Outcome::Running),
        (vec![script("image"), done("k", 1, true), Seen::CalledBack { job: JobId(7) }], Outcome::Confirmed),
    ];
    for (story, outcome) in cases {
        let history = History::default();
        for (n, seen) in story.iter().enumerate() {
            history.note(Evidence { boot: None, ..of(MAC, n as f64, seen.clone()) });
        }
        let boots = history.boots(MAC);
        assert_eq!((boots.len(), boots[0].outcome), (1, outcome), "{story:?}");
        let text = boots[0].to_string();
        assert!(text.contains(outcome.word()), "{text}");
    }
}

#[test]
fn long_boots_keep_their_beginning_and_their_end() {
    let history = History::new(Bounds { machines: 2, boots: 2, steps: 8, ..Bounds::default() });
    let boot = Some(BootId(1));
    history.note(Evidence { boot, ..of(MAC, 0.0, script("image")) });
    for n in 0..100 {
        history.note(Evidence { boot, ..of(MAC, f64::from(n), started(&format!("file{n}"))) });
    }
    let timeline = &history.boots(MAC)[0];
    assert_eq!((timeline.steps.len(), timeline.left_out), (8, 93));
    assert!(matches!(timeline.steps[0].seen, Seen::ScriptAsked { .. }));
    assert!(matches!(&timeline.steps[7].seen, Seen::FileStarted { file, .. } if file == "file99"));
}

#[test]
fn strangers_make_room_before_machines_that_came_further() {
    let history = History::new(Bounds { machines: 10, boots: 2, steps: 8, ..Bounds::default() });
    whole_boot(&history, 0.0, 1);
    for n in 0..10_000u32 {
        let [a, b, c, d] = n.to_be_bytes();
        history.note(of(MacAddr([2, 0, a, b, c, d]), 10.0, dhcp(Asker::Firmware, "x")));
    }
    assert_eq!(history.boots(MAC).len(), 1);
    assert_eq!(history.machines().len(), 10);
    let records = history.records();
    assert_eq!((records.by_mac.len(), records.order.len(), records.machines.len()), (10, 10, 10));
    assert!(records.by_address.len() <= 10);
}

#[test]
fn only_so_many_boots_of_a_machine_are_kept() {
    let history = History::new(Bounds { machines: 2, boots: 3, steps: 20, ..Bounds::default() });
    for n in 0..10 {
        whole_boot(&history, f64::from(n) * 100.0, n as u64);
    }
    let boots: Vec<_> = history.boots(MAC).iter().filter_map(|boot| boot.boot).collect();
    assert_eq!(boots, [BootId(9), BootId(8), BootId(7)]);
    assert_eq!(history.recent(2).len(), 2);
}

#[test]
fn a_uuid_finds_every_address_that_showed_it() {
    let history = History::default();
    let uuid: Uuid = "4c4c4544-0042-3510-8052-b4c04f564231".parse().unwrap();
    let other = MacAddr([2, 0, 0, 0, 0, 9]);
    for mac in [MAC, other] {
        history.note(Evidence { uuid: Some(uuid), ..of(mac, 0.0, script("menu")) });
    }
    assert_eq!(history.boots(uuid).len(), 2);
    assert_eq!(history.boots(other).len(), 1);
    let named: Named = "52-54-00-12-34-56".parse().unwrap();
    assert_eq!(history.boots(named).len(), 1);
    assert_eq!("4C4C4544-0042-3510-8052-B4C04F564231".parse(), Ok(Named::Uuid(uuid)));
    assert_eq!("x".parse::<Named>(), Err(NotAMachine));
}

#[test]
fn evidence_that_does_not_say_whose_it_is_is_placed_by_its_boot_or_its_address() {
    let history = History::default();
    let uuid: Uuid = "4c4c4544-0042-3510-8052-b4c04f564231".parse().unwrap();
    let boot = Some(BootId(3));
    history.note(Evidence { uuid: Some(uuid), boot, address: Some(ADDRESS), ..of(MAC, 0.0, script("menu")) });
    let bare = || Evidence::new(at(1.0), started("k"));
    let (mac, uuid) = (Some(MAC), Some(uuid));
    assert_eq!(history.whose(&Evidence { boot, ..bare() }), (mac, uuid, false));
    assert_eq!(history.whose(&of(MAC, 1.0, started("k"))), (mac, uuid, false));
    assert_eq!(history.whose(&bare()), (None, None, false));
    let there = |seconds| Evidence { address: Some(ADDRESS), ..Evidence::new(at(seconds), started("k")) };
    assert_eq!(history.whose(&there(500.0)), (mac, uuid, true));
    assert_eq!(history.whose(&there(700.0)), (None, None, false), "another may have that address by now");
    let other = MacAddr([2, 0, 0, 0, 0, 9]);
    assert_eq!(history.whose(&of(other, 1.0, started("k"))), (Some(other), None, false));
}

#[test]
fn evidence_nobody_can_place_is_counted() {
    let history = History::default();
    history.note(Evidence { address: Some(ADDRESS), ..Evidence::new(at(0.0), loader()) });
    history.note(Evidence { boot: Some(BootId(3)), ..Evidence::new(at(0.0), started("k")) });
    assert_eq!((history.unplaced(), history.machines().len()), (2, 0));
}

#[test]
fn texts_from_outside_are_cut_and_cannot_move_the_cursor() {
    let history = History::default();
    let nasty = "\u{1b}[2J\u{e9}".repeat(1_000);
    history.note(of(MAC, 0.0, dhcp(Asker::Firmware, &nasty)));
    let timeline = &history.boots(MAC)[0];
    let Seen::DhcpOffered { file, .. } = &timeline.steps[0].seen else { panic!("{timeline:?}") };
    assert!(file.len() <= 200);
    assert!(!timeline.to_string().contains('\u{1b}'));
}

#[test]
fn a_timeline_survives_its_own_json() {
    let history = History::default();
    // Kept in milliseconds.
    let whole = |seconds: f64| seconds + 0.123;
    let boot = Some(BootId(1));
    history.note(of(MAC, whole(0.0), dhcp(Asker::Http, "http://10.77.0.1:4433/loaders/ipxe.efi")));
    history.note(Evidence { boot, ..of(MAC, whole(2.0), script("image")) });
    history.note(Evidence { boot, ..of(MAC, whole(4.0), done("k", 10, true)) });
    let timeline = history.boots(MAC).remove(0);
    let text = serde_json::to_string(&timeline).unwrap();
    assert!(text.contains(r#""what":"dhcp-offered""#) && text.contains(r#""outcome":"running""#), "{text}");
    assert_eq!(serde_json::from_str::<Timeline>(&text).unwrap(), timeline);
}

#[test]
fn how_a_transfer_by_tftp_went_is_told_with_it() {
    let facts = |resends| TransferFacts {
        blksize: 1468,
        windowsize: 4,
        took_ms: 250,
        rtt_us: Some(1234),
        resends,
        way: Way::Frame,
    };
    let history = History::new(Bounds::default());
    history.note(Evidence { transfer: Some(facts(0)), ..of(MAC, 0.0, loader()) });
    history.note(Evidence {
        transfer: Some(TransferFacts { windowsize: 1, rtt_us: None, ..facts(7) }),
        ..of(
            MAC,
            1.0,
            Seen::TransferFailed {
                job: None,
                file: "ipxe.efi".into(),
                bytes: 2936,
                reason: "the machine fell silent".into(),
                over: Over::Tftp,
            },
        )
    });
    let told: Vec<_> = history.boots(MAC)[0].steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "TFTP: loader snponly.efi delivered, 293.0 KiB, 1.1 MiB/s in blocks of 1468 and windows of 4 by frame, \
             round trip 1.2 ms",
            "TFTP: ipxe.efi broke off after 2.9 KiB: the machine fell silent, 11.5 KiB/s in blocks of 1468 by \
             frame, sent again 7 times",
        ]
    );
}

#[test]
fn a_file_that_came_in_ranges_is_one_file_with_its_bytes() {
    let history = History::new(Bounds::default());
    let range = |n: u8| {
        let Seen::FileDone { job, image, file, over, .. } = done("boot.wim", 0, false) else {
            unreachable!()
        };
        // The range at the end of the last file is the second of four to arrive.
        Seen::FileDone { job, image, file, bytes: 1 << 20, part: true, last: n == 1, over }
    };
    history.note(of(MAC, 0.0, done("boot.sdi", 3 << 20, false)));
    for n in 0..4 {
        history.note(of(MAC, f64::from(n) * 2.0, started("boot.wim")));
        history.note(of(MAC, f64::from(n) * 2.0, range(n)));
    }
    history.note(of(MAC, 9.0, done("boot.sdi", 3 << 20, false)));
    let boot = history.boots(MAC).remove(0);
    let told: Vec<_> = boot.steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "HTTP: debian/boot.sdi delivered, 6.0 MiB, 682.7 KiB/s (2 times)",
            "HTTP: debian/boot.wim asked for (4 times)",
            "HTTP: debian/boot.wim delivered, 4.0 MiB in 4 ranges, 682.7 KiB/s, the last file",
        ]
    );
    let once = History::new(Bounds::default());
    once.note(of(MAC, 0.0, range(0)));
    assert_eq!(once.boots(MAC)[0].steps[0].to_string(), "HTTP: debian/boot.wim delivered, 1.0 MiB of it");
}

fn heard(server: u8, file: Option<&str>) -> Seen {
    Seen::OtherOffered {
        server: Ipv4Addr::new(10, 77, 0, server),
        file: file.map(str::to_owned),
        next_server: None,
        leases: true,
        pxe: false,
        sends_to_4011: false,
    }
}

#[test]
fn what_is_heard_of_others_begins_no_boot_and_leaves_a_boot_alone_that_is_past_dhcp() {
    let history = History::default();
    history.note(of(MAC, 0.0, heard(5, None)));
    history.note(of(MAC, 0.0, Seen::OtherAcked { server: Ipv4Addr::new(10, 77, 0, 5) }));
    assert_eq!(
        (history.machines().len(), history.unplaced()),
        (0, 0),
        "an ordinary computer is nobody's boot"
    );
    history.note(of(MAC, 1.0, dhcp(Asker::Firmware, "x")));
    history.note(of(MAC, 1.1, heard(5, Some("pxelinux.0"))));
    let boot = Some(BootId(1));
    history.note(Evidence { boot, ..of(MAC, 5.0, script("local")) });
    // The system that was booted asks for its address.
    history.note(of(MAC, 30.0, heard(5, None)));
    let boots = history.boots(MAC);
    assert_eq!((boots.len(), boots[0].steps.len()), (1, 4), "{boots:?}");
}

#[test]
fn an_offer_heard_before_the_machine_is_known_is_its_boots() {
    let history = History::default();
    let offer = |seconds, file| {
        let mut evidence = of(MAC, seconds, heard(5, Some(file)));
        evidence.packets = vec![packet(300)];
        evidence
    };
    history.note(offer(0.0, "old.efi"));
    history.note(offer(20.0, "grub.efi"));
    history.note(of(MacAddr([2, 0, 0, 0, 0, 1]), 20.0, heard(6, None)));
    assert_eq!(history.machines().len(), 0, "nobody's boot yet");
    history.note(of(MAC, 20.1, ignored("deferred")));
    let boot = &history.boots(MAC)[0];
    assert_eq!((boot.started, boot.steps.len(), boot.outcome), (at(20.0), 2, Outcome::Ignored), "{boot}");
    assert!(matches!(&boot.steps[0].seen, Seen::OtherOffered { file: Some(file), .. } if file == "grub.efi"));
    assert_eq!(history.packets(MAC, boot.started).len(), 1);
    // The same before a later boot of a machine that is known, and once only.
    history.note(offer(900.0, "again.efi"));
    history.note(of(MAC, 900.1, dhcp(Asker::Firmware, "x")));
    history.note(of(MAC, 1_900.0, dhcp(Asker::Firmware, "x")));
    let lengths: Vec<usize> = history.boots(MAC).iter().map(|boot| boot.steps.len()).collect();
    assert_eq!(lengths, [1, 2, 2]);
    for n in 0..10_000u32 {
        let [_, _, c, d] = n.to_be_bytes();
        history.note(of(MacAddr([6, 0, 0, 0, c, d]), 2_000.0, heard(7, Some("x"))));
    }
    assert!(history.records().overheard.len() <= OVERHEARD_MAX);
    assert_eq!(history.machines().len(), 1);
    let records = history.records();
    assert_eq!(records.bytes, counted(&records));
}

/// A hundred thousand machines boot once each, whole, and twenty thousand strangers ask by DHCP.
#[test]
fn a_hundred_thousand_machines_fit_into_their_bytes() {
    let bounds = Bounds::default();
    let history = History::new(bounds);
    let machine = |n: u32, first: u8| {
        let [a, b, c, d] = n.to_be_bytes();
        MacAddr([first, 0, a, b, c, d])
    };
    let count = 100_000;
    for n in 0..count {
        let (mac, start) = (machine(n, 2), f64::from(n) / 100.0);
        let boot = Some(BootId(n.into()));
        history.note(of(mac, start, dhcp(Asker::Firmware, "snponly.efi")));
        history.note(of(mac, start + 0.5, Seen::AddressGiven { relay: None }));
        history.note(of(mac, start + 1.0, Seen::TftpAsked { file: "snponly.efi".into() }));
        history.note(of(mac, start + 1.0, loader()));
        history.note(of(
            mac,
            start + 2.0,
            dhcp(Asker::Ipxe, "http://10.77.0.1:4433/ipxe?mac=52:54:00:12:34:56"),
        ));
        history.note(Evidence { boot, ..of(mac, start + 2.5, script("image")) });
        for (file, last) in [("vmlinuz", false), ("initrd.img", true)] {
            history.note(Evidence { boot, ..of(mac, start + 3.0, started(file)) });
            history.note(Evidence { boot, ..of(mac, start + 4.0, done(file, 9 << 20, last)) });
        }
    }
    let size = history.size();
    println!("{count} machines: {} bytes of timelines, {} each", size.bytes, size.bytes / count as usize);
    assert_eq!(size.machines, count as usize);
    assert!(size.bytes <= bounds.bytes, "{size:?}");
    assert!(size.bytes < 160 << 20, "{size:?}");
    let first = history.boots(machine(0, 2));
    assert_eq!((first.len(), first[0].outcome, first[0].steps.len()), (1, Outcome::Running, 10));
    for n in 0..20_000 {
        history.note(of(machine(n, 6), 2_000.0, dhcp(Asker::Firmware, "x")));
    }
    let size = history.size();
    assert!(size.machines <= bounds.machines && size.bytes <= bounds.bytes, "{size:?}");
    assert_eq!(history.boots(machine(5, 2)).len(), 1, "strangers push out nobody who came further");
    // What is counted is what there is.
    let records = history.records();
    assert_eq!(records.bytes, counted(&records));
    let boots = records.machines.values().flat_map(|machine| &machine.boots);
    assert_eq!(records.by_boot.len(), boots.filter(|boot| boot.boot().is_some()).count());
    assert!(records.open.len() <= bounds.open);
}

/// What `Records::bytes` has to be, reckoned anew from everything there is.
fn counted(records: &Records) -> usize {
    let of = |machine: &Machine| MACHINE_COST + machine.boots.iter().map(Kept::footprint).sum::<usize>();
    records.machines.values().map(of).sum()
}

#[test]
fn bytes_are_counted_right_whatever_a_boot_does() {
    let history = History::new(Bounds { steps: 6, open: 2, boots: 3, ..Bounds::default() });
    let whys = ["", "it had its job", &"long ".repeat(100)];
    for n in 0..400u32 {
        let mac = MacAddr([2, 0, 0, 0, 0, (n % 5) as u8]);
        let name = "x".repeat(n as usize * 7 % 300);
        let mut evidence = of(
            mac,
            f64::from(n) * 40.0,
            match n % 7 {
                0 => dhcp(Asker::Firmware, &name),
                1 => heard(n as u8, Some(&name)),
                2 => Seen::TftpRefused { file: name, reason: "gone".into() },
                3 => started(&name),
                4 => done("same", 9, false),
                _ => script(&name),
            },
        );
        evidence.boot = (n % 3 > 0).then_some(BootId(u64::from(n / 9)));
        evidence.why = Some(Why { cause: Cause::Job, said: whys[n as usize % 3].to_owned() });
        history.note(evidence);
        let records = history.records();
        assert_eq!(records.bytes, counted(&records), "after {n}");
    }
}

#[test]
fn who_goes_on_talking_moves_behind_the_others_once_a_second() {
    let history = History::new(Bounds { machines: 3, ..Bounds::default() });
    let machine = |n: u8| MacAddr([2, 0, 0, 0, 0, n]);
    for n in 0..3 {
        history.note(of(machine(n), f64::from(n), dhcp(Asker::Firmware, "x")));
    }
    history.note(of(machine(0), 5.0, dhcp(Asker::Firmware, "x")));
    history.note(of(machine(3), 6.0, dhcp(Asker::Firmware, "x")));
    assert!(history.boots(machine(1)).is_empty(), "the longest unseen makes room");
    assert!(!history.boots(machine(0)).is_empty());
    // A clock that was set back keeps nobody from moving.
    history.note(of(machine(2), 0.0, dhcp(Asker::Firmware, "x")));
    history.note(of(machine(4), 6.5, dhcp(Asker::Firmware, "x")));
    assert!(history.boots(machine(0)).is_empty() && !history.boots(machine(2)).is_empty());
}

#[test]
fn bytes_are_bounded_and_old_boots_go_before_machines() {
    let history = History::new(Bounds { bytes: 200_000, open: 2, ..Bounds::default() });
    for round in 0..8 {
        for n in 0..20u8 {
            let boot = u64::from(round * 100 + u32::from(n));
            let mac = MacAddr([2, 0, 0, 0, 0, n]);
            let start = f64::from(round) * 1_000.0 + f64::from(n);
            history.note(of(mac, start, dhcp(Asker::Firmware, "snponly.efi")));
            for file in 0..30 {
                let name = format!("a-file-with-a-name-{file}-{boot}");
                history.note(Evidence { boot: Some(BootId(boot)), ..of(mac, start, started(&name)) });
            }
        }
    }
    let size = history.size();
    assert!(size.bytes <= 200_000, "{size:?}");
    assert_eq!(size.bytes, counted(&history.records()), "what is counted is what there is");
    assert_eq!(size.machines, 20, "nobody was forgotten whole");
    for n in 0..20u8 {
        assert!(!history.boots(MacAddr([2, 0, 0, 0, 0, n])).is_empty());
    }
}

fn packet(len: usize) -> Packet {
    let ends: std::net::SocketAddrV4 = "10.77.0.1:67".parse().unwrap();
    Packet::dhcp(ends, ends, true, &vec![1; len])
}

#[test]
fn packets_are_kept_of_two_boots_within_bounds_and_the_oldest_machines_lose_theirs_first() {
    let history = History::new(Bounds { packets: 300_000, ..Bounds::default() });
    for boot in 0..3 {
        let start = f64::from(boot) * 1_000.0;
        for n in 0..200 {
            let mut evidence = of(MAC, start + f64::from(n) / 10.0, dhcp(Asker::Firmware, "x"));
            evidence.packets = vec![packet(300), packet(400)];
            history.note(evidence);
        }
    }
    let kept = history.packets(MAC, UNIX_EPOCH);
    assert!(kept.len() <= 2 * PACKETS_MAX && kept.len() > PACKETS_MAX, "{}", kept.len());
    assert!(kept.iter().all(|(moment, _)| *moment >= at(1_000.0)), "the boot before the last two is gone");
    assert!(history.packets(MAC, at(2_000.0)).len() <= PACKETS_MAX);
    for n in 0..200u8 {
        let mut evidence = of(MacAddr([2, 0, 0, 0, 0, n]), 3_000.0, dhcp(Asker::Firmware, "x"));
        evidence.packets = vec![packet(1_000); 10];
        history.note(evidence);
        assert!(history.size().packet_bytes <= 300_000);
    }
    assert!(history.packets(MAC, UNIX_EPOCH).is_empty());
    assert_eq!(history.packets(MacAddr([2, 0, 0, 0, 0, 199]), UNIX_EPOCH).len(), 10);
}

#[test]
fn what_is_new_is_due_once_and_a_machine_that_waits_is_not_stored_all_the_time() {
    let history = History::default();
    let all = |_, _, _| true;
    whole_boot(&history, 0.0, 1);
    assert!(history.take_due(10, 3, at(6.0), all).is_empty(), "not before the next look");
    let due = history.take_due(10, 3, at(8.0), all);
    assert_eq!((due.len(), due[0].mac, due[0].boots.len()), (1, Some(MAC), 1));
    assert!(history.take_due(10, 3, at(10.0), all).is_empty());
    history.still_due(&due);
    assert_eq!(history.take_due(10, 3, at(11.0), all).len(), 1, "what was not stored is due again");
    let waiter = MacAddr([2, 0, 0, 0, 0, 1]);
    let mut stored = 0;
    for n in 0..120 {
        let boot = Some(BootId(100 + n));
        let seconds = 100.0 + n as f64 * 10.0;
        history.note(Evidence { boot, ..of(waiter, seconds, script("wait")) });
        stored += history.take_due(10, 3, at(seconds), all).len();
    }
    assert!((15..=25).contains(&stored), "once a minute of twenty: {stored}");
    // Nobody's record is made of who may not be stored.
    history.note(of(MacAddr([2, 0, 0, 0, 0, 2]), 5_000.0, dhcp(Asker::Firmware, "x")));
    let never = |_, _, had_script: bool| had_script;
    history.take_due(10, 3, at(5_000.0), never);
    assert!(history.take_due(10, 3, at(5_002.0), never).iter().all(|due| due.mac == Some(waiter)));
}

#[test]
fn a_record_is_read_back_and_a_boot_goes_on_across_a_restart() {
    let history = History::default();
    whole_boot(&history, 0.0, 1);
    whole_boot(&history, 2_000.0, 2);
    let boots: Vec<_> = history.boots(MAC).into_iter().rev().collect();
    let stored = read_record(&record(&boots));
    assert_eq!(stored, boots);
    assert_eq!(merge(stored.clone(), boots.clone()), boots, "each boot once");
    // After a restart the second boot goes on under its number.
    let after = History::default();
    let boot = Some(BootId(2));
    after.note(Evidence { boot, ..of(MAC, 2_060.0, Seen::CalledBack { job: JobId(7) }) });
    let merged = merge(stored, after.boots(MAC));
    assert_eq!(merged.len(), 2);
    assert_eq!((merged[1].started, merged[1].steps.len()), (boots[1].started, 9));
    assert_eq!((merged[1].outcome, merged[1].image.as_deref()), (Outcome::Confirmed, Some("debian")));
    assert!(read_record("nonsense").is_empty());
    // A record stays short whatever a boot does.
    let mut long = boots[0].clone();
    let step = long.steps[0].clone();
    long.steps = vec![step; 48];
    let many = vec![long; 8];
    let body = record(&many);
    assert!(body.len() <= 16 << 10 && !read_record(&body).is_empty(), "{}", body.len());
}

#[test]
fn what_others_make_up_does_not_push_out_a_machines_own_story() {
    let history = History::default();
    history.note(of(MAC, 0.0, dhcp(Asker::Firmware, "snponly.efi")));
    for n in 0..200u8 {
        history.note(of(MAC, 1.0, heard(n, Some("evil"))));
        history.note(of(MAC, 1.0, Seen::TftpRefused { file: format!("evil-{n}"), reason: "x".into() }));
    }
    history.note(of(MAC, 2.0, heard(3, Some("evil"))));
    history.note(of(MAC, 2.0, loader()));
    let boot = &history.boots(MAC)[0];
    assert_eq!((boot.steps.len(), boot.left_out), (18, 2 * 192));
    assert!(matches!(boot.steps[0].seen, Seen::DhcpOffered { .. }));
    assert!(matches!(boot.steps[17].seen, Seen::LoaderFetched { .. }));
}
