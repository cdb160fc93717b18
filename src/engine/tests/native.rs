//! Machines that boot an image's own program, over TFTP from the running engine.

use super::*;
use crate::files::library::test_site::SMALL_WIM;
use crate::jobs::job::{Action, JobSpec, Selector, Stage};
use crate::jobs::rule::{Circuit, CircuitMark, Rule};
use crate::jobs::script::{Policy, Unknown};
use crate::wire::{Arch, MacAddr, Uuid};

/// A GSS image whose iPXE is off, and another that is a plain one; DHCP has seen the machine of this address.
fn lab() -> Lab {
    Lab::start_with(Driver::Mio, 1_000, |images| {
        for (name, bytes) in [
            ("MenuOption128/X64/pxeboot.n12", b"boot program".as_slice()),
            ("MenuOption128/X64/bootmgr.exe", b"boot manager"),
            ("MenuOption128/X64/Boot/BCD", b"boot store"),
            ("MenuOption128/X64/boot.wim", SMALL_WIM),
            ("MenuOption144/X64/bstrap.0", b"bstrap"),
            ("MenuOption144/X64/vmlinuz", b"kernel"),
            ("wipe/X64/pxeboot.n12", b"another program"),
            ("wipe/X64/boot.wim", SMALL_WIM),
            ("wipe/X64/other.wim", SMALL_WIM),
            ("wipe/image.toml", b"destructive = true"),
        ] {
            let path = images.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    })
}

fn see(lab: &Lab) {
    see_with(lab, None, None);
}

fn see_with(lab: &Lab, uuid: Option<Uuid>, circuit: Option<CircuitMark>) {
    lab.shared.sightings.record(Ipv4Addr::LOCALHOST, seen_as(1, uuid, circuit));
}

fn seen_as(last: u8, uuid: Option<Uuid>, circuit: Option<CircuitMark>) -> Sighting {
    Sighting { mac: MacAddr([2, 0, 0, 0, 0, last]), arch: Arch::BIOS, uuid, circuit, exchange: 0 }
}

/// The content, or the code of the refusal.
fn ask(lab: &Lab, name: &str) -> Result<Vec<u8>, u16> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut packet = [0; 512];
    let len = tftp::emit_rrq(&mut packet, name.as_bytes(), Mode::Octet, &Options::default()).unwrap();
    socket.send_to(&packet[..len], lab.engine.as_ref().unwrap().bound.tftp[0]).unwrap();
    let mut buffer = [0; 1024];
    let (len, _) = socket.recv_from(&mut buffer).expect("an answer");
    match Packet::parse(&buffer[..len]).unwrap() {
        Packet::Error(code, _) => Err(code.code()),
        // All of it is in the first block.
        Packet::Data(1, payload) if payload.len() < 512 => Ok(payload.to_vec()),
        _ => Ok(tftp_get(lab, name, Options::default())),
    }
}

#[test]
fn the_boot_managers_names_mean_the_folder_of_the_machines_job() {
    let lab = lab();
    assert_eq!(ask(&lab, "\\Boot\\BCD"), Err(1), "nobody knows whose it is");
    see(&lab);
    assert_eq!(ask(&lab, "\\Boot\\BCD"), Err(1), "no job");
    lab.add("MenuOption128");
    for (name, content) in [
        ("MenuOption128/X64/pxeboot.n12", "boot program"),
        ("\\Boot\\BCD", "boot store"),
        ("/boot\\bcd", "boot store"),
        ("bootmgr.exe", "boot manager"),
        // What an old DHCP scope calls the loader is this machine's program.
        ("bstrap.0", "boot program"),
        ("BStrap\\X86pc\\BStrap.0", "boot program"),
    ] {
        assert_eq!(
            ask(&lab, name).map(|bytes| String::from_utf8(bytes).unwrap()).as_deref(),
            Ok(content),
            "{name}"
        );
    }
    for name in
        ["\\Boot\\Fonts\\wgl4_boot.ttf", "..\\image.toml", "image.toml", "revocations_sku.efi", "grubx64.efi"]
    {
        assert_eq!(ask(&lab, name), Err(1), "{name}");
    }
}

#[test]
fn the_last_block_of_the_wim_is_the_point_of_no_return() {
    let lab = lab();
    see(&lab);
    let id = lab.add("MenuOption128");
    assert!(ask(&lab, "bootmgr.exe").is_ok() && ask(&lab, "\\Boot\\BCD").is_ok());
    assert_eq!(lab.stage(id), Stage::Armed);
    assert_eq!(ask(&lab, "\\boot.wim").unwrap(), SMALL_WIM);
    assert_eq!(lab.stage(id), Stage::Running);
    assert!(ask(&lab, "\\Boot\\BCD").is_ok(), "the boot that passed goes on with its files");
    assert_eq!(ask(&lab, "bstrap.0"), Err(1), "but nothing starts it again");
}

#[test]
fn what_may_wipe_leaves_for_a_live_job_and_for_the_boot_that_passed_alone() {
    let lab = lab();
    let wim = || ask(&lab, "wipe/X64/boot.wim");
    assert_eq!(wim(), Err(2), "nobody's DHCP was seen");
    assert!(ask(&lab, "wipe/X64/pxeboot.n12").is_ok(), "without the WIM it does nothing");
    see(&lab);
    assert_eq!(wim(), Err(2), "no job");
    assert_eq!(ask(&lab, "wipe/X64/other.wim"), Err(2), "its program may start this one");
    let id = lab.add("wipe");
    assert_eq!(wim().unwrap(), SMALL_WIM);
    assert_eq!(lab.stage(id), Stage::Running);
    assert_eq!(wim().unwrap(), SMALL_WIM, "the same boot may fetch it again");
    assert!(ask(&lab, "wipe/X64/other.wim").is_ok(), "and what else it wants");
    // The machine boots again, from a scope that names the program itself.
    see(&lab);
    assert_eq!(wim(), Err(2), "it had its job");
    assert_eq!(ask(&lab, "\\boot.wim"), Err(2), "by whatever name");
    assert_eq!(ask(&lab, "wipe/X64/other.wim"), Err(2), "its program may start this one");
    lab.order(crate::keeper::Order::Rearm { id, expected: None, all: false });
    assert_eq!(wim().unwrap(), SMALL_WIM);
}

#[test]
fn what_its_script_starts_fetches_what_may_wipe_and_its_next_boot_does_not() {
    let lab = lab();
    see(&lab);
    let id = lab.add("wipe");
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=pcbios";
    let script = || String::from_utf8(get(&mut lab.http(), path, "User-Agent: iPXE/1.21\r\n").1).unwrap();
    assert!(script().contains("tftp://127.0.0.1/wipe/X64/pxeboot.n12"));
    assert_eq!(lab.stage(id), Stage::Running, "the script is its point of no return");
    assert_eq!(ask(&lab, "wipe/X64/boot.wim").unwrap(), SMALL_WIM);
    see(&lab);
    assert_eq!(ask(&lab, "wipe/X64/boot.wim"), Err(2), "it had its job");
    assert!(script().contains("had its job"));
}

#[test]
fn a_job_by_what_only_dhcp_was_shown_is_used_up_by_tftp_too() {
    let uuid: Uuid = "4c4c4544-0042-3510-8052-b4c04f564231".parse().unwrap();
    let port = || Circuit(b"eth0/1/7".to_vec());
    let on_port = Rule { circuit: Some(port()), ..Rule::default() };
    for selector in [Selector::Uuid(uuid), Selector::Rule(Box::new(on_port))] {
        let lab = lab();
        let spec =
            JobSpec { allow_rule: true, ..JobSpec::new(Action::Image("wipe".into()), selector.clone()) };
        lab.order(crate::keeper::Order::AddJobs(vec![spec]));
        see(&lab);
        assert_eq!(ask(&lab, "wipe/X64/boot.wim"), Err(2), "{selector}: another machine");
        for had in [false, true] {
            see_with(&lab, Some(uuid), Some(CircuitMark::of(&port().0)));
            assert_eq!(ask(&lab, "wipe/X64/boot.wim").is_err(), had, "{selector}");
        }
    }
}

#[test]
fn an_image_that_cannot_boot_any_more_gives_a_machine_with_its_job_nothing() {
    let lab = lab();
    see(&lab);
    let id = lab.add("wipe");
    assert!(ask(&lab, "wipe/X64/pxeboot.n12").is_ok());
    let manifest = lab.dir.join("images/wipe/image.toml");
    fs::write(&manifest, "destructive = true\nno_such_key = 1\n").unwrap();
    age(&manifest);
    lab.library.rescan().unwrap();
    let refused = || {
        assert_eq!(ask(&lab, "wipe/X64/boot.wim"), Err(2));
        assert_eq!(lab.stage(id), Stage::Armed);
    };
    refused();
    // Nor anybody else, from a scope that names the program.
    lab.shared.sightings.record(Ipv4Addr::LOCALHOST, seen_as(2, None, None));
    refused();
    // Nor who has a job for what wipes nothing, once nobody can say whether it does.
    lab.add("MenuOption128");
    see(&lab);
    fs::write(lab.dir.join("images/MenuOption128/image.toml"), "no_such_key = 1\n").unwrap();
    age(&lab.dir.join("images/MenuOption128/image.toml"));
    lab.library.rescan().unwrap();
    assert_eq!(ask(&lab, "MenuOption128/X64/boot.wim"), Err(2));
}

#[test]
fn a_rule_of_before_its_image_could_wipe_gives_nobody_its_wim() {
    let lab = lab();
    let spec =
        JobSpec { allow_rule: true, ..JobSpec::new(Action::Image("MenuOption128".into()), Selector::Any) };
    lab.order(crate::keeper::Order::AddJobs(vec![spec]));
    let uuid = "4c4c4544-0042-3510-8052-b4c04f564231".parse().ok();
    see_with(&lab, uuid, None);
    fs::write(lab.dir.join("images/MenuOption128/image.toml"), "destructive = true\n").unwrap();
    age(&lab.dir.join("images/MenuOption128/image.toml"));
    lab.library.rescan().unwrap();
    assert_eq!(ask(&lab, "MenuOption128/X64/boot.wim"), Err(2));
    fs::write(lab.dir.join("images/MenuOption128/image.toml"), "title = \"x\"\n").unwrap();
    age(&lab.dir.join("images/MenuOption128/image.toml"));
    lab.library.rescan().unwrap();
    assert!(ask(&lab, "MenuOption128/X64/boot.wim").is_ok());
}

#[test]
fn who_is_refused_gets_no_loader_by_tftp_or_http() {
    let lab = lab();
    // The lab has no loader folder: 404 is its "come in".
    let both = || (ask(&lab, "autoexec.ipxe").err(), lab.status("/loaders/undionly.kpxe"));
    let policy = Policy { unknown: Unknown::Silent, ..Policy::default() };
    lab.shared.policy.store(Arc::new(policy));
    assert_eq!(both(), (None, "404".into()), "nobody knows who that is");
    see(&lab);
    assert_eq!(both(), (Some(2), "403".into()));
    lab.add("MenuOption144");
    assert_eq!(both(), (None, "404".into()), "it has a job");
}

#[test]
fn switching_takes_effect_at_the_next_packet() {
    let lab = lab();
    see(&lab);
    lab.add("MenuOption144");
    assert_eq!(ask(&lab, "undionly.kpxe").unwrap(), b"bstrap");
    lab.add("MenuOption144");
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=pcbios";
    let script = || String::from_utf8(get(&mut lab.http(), path, "User-Agent: iPXE/1.21\r\n").1).unwrap();
    let by_tftp = "chain --autofree --timeout 120000 tftp://127.0.0.1/MenuOption144/X64/bstrap.0";
    assert!(script().contains(by_tftp));
    let (staged, loader) = (lab.dir.join("images/.new"), lab.dir.join("images/MenuOption144/X64/zipxe.0"));
    fs::write(&staged, "iPXE").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::rename(&staged, &loader).unwrap();
    lab.library.rescan().unwrap();
    lab.add("MenuOption144");
    assert_eq!(ask(&lab, "undionly.kpxe"), Err(1), "the loader folders hold none for it");
    assert!(script().contains("/images/MenuOption144/X64/vmlinuz"), "{}", script());
    fs::remove_file(loader).unwrap();
    lab.library.rescan().unwrap();
    lab.add("MenuOption144");
    assert_eq!(ask(&lab, "undionly.kpxe").unwrap(), b"bstrap");
}
