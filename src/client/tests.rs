//! Scripts, choices between offers, and the relay.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::script::{End, Fetched, Interpreter, Step};
use super::*;
use crate::wire::dhcp::{Emitter, Header, Message, MessageType, code};

fn run_script(text: &str) -> (Step, String) {
    let settings =
        [("net0/mac", "52:54:00:00:00:01"), ("platform", "efi"), ("serial", "A B/+1"), ("loop", "${loop2}")];
    let settings: BTreeMap<String, String> = settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let mut interpreter = Interpreter::new(settings);
    let step = interpreter.start(text);
    (step, interpreter.screen)
}

fn screen(lines: &str) -> String {
    run_script(&format!("#!ipxe\n{lines}")).1
}

#[test]
fn lines_are_split_before_settings_are_filled_in() {
    assert_eq!(screen("set x a || echo b\necho ${x}\n"), "a\n");
    assert_eq!(screen("echo ${serial} || echo no\n"), "A B/+1\n");
    assert_eq!(screen("echo ${serial:uristring}\n"), "A%20B%2F+1\n");
    assert_eq!(screen("echo a#b # comment\n"), "a#b\n");
    assert_eq!(screen("echo one \\\ntwo\n"), "one two\n");
    assert_eq!(screen("echo ${nothing}x${loop}y\n"), "xy\n");
    assert_eq!(screen("set a b && set ${a}c d\necho ${${a}c}\n"), "d\n");
}

#[test]
fn separators_are_evaluated_left_to_right() {
    assert_eq!(screen("isset ${none} && echo a || echo b\n"), "b\n");
    assert_eq!(screen("isset x && echo a || echo b\n"), "a\n");
    assert_eq!(screen("isset ${none} ; echo c\n"), "c\n");
    assert_eq!(screen("params ||\necho on\n"), "params: command not found\non\n");
}

#[test]
fn a_prompt_takes_as_long_as_nobody_presses_a_key() {
    let mut interpreter = Interpreter::new(BTreeMap::new());
    let script =
        "#!ipxe\nprompt --key l --timeout 1250 Wait && goto local ||\necho on\nexit\n:local\necho local\n";
    assert_eq!(interpreter.start(script), Step::Sleep(Duration::from_millis(1250)));
    assert_eq!(interpreter.resume(), Step::Done(End::Exited(true)));
    assert_eq!(interpreter.screen, "on\n");
}

#[test]
fn a_line_that_fails_ends_the_script_with_the_line() {
    let (step, _) = run_script("#!ipxe\necho a\nisset ${none}\necho b\n");
    assert!(matches!(step, Step::Done(End::Failed { line, .. }) if line == "isset ${none}"));
    assert!(matches!(run_script("echo no magic\n").0, Step::Done(End::Failed { .. })));
}

#[test]
fn labels_and_loops() {
    assert_eq!(screen("goto two\n:one\necho 1\nexit\n:two\necho 2\ngoto one\n"), "2\n1\n");
    let (step, _) = run_script("#!ipxe\n:again\ngoto again\n");
    assert!(matches!(step, Step::Done(End::Failed { reason, .. }) if reason.contains("does not end")));
    assert!(matches!(run_script("#!ipxe\ngoto nowhere\n").0, Step::Done(End::Failed { .. })));
}

#[test]
fn a_menu_times_out_to_its_default() {
    let menu = "menu Title\nitem --gap -- gap\nitem --key a a Alpha\nitem local Disk\n";
    assert_eq!(
        screen(&format!("{menu}choose --default local --timeout 100 sel\necho ${{sel}}\n")),
        "local\n"
    );
    assert_eq!(screen(&format!("{menu}choose --default unknown sel\necho ${{sel}}\n")), "a\n");
}

#[test]
fn a_kernel_with_its_files_boots() {
    let mut interpreter = Interpreter::new(BTreeMap::new());
    let fetch = |url: &str| Step::Fetch { url: url.into() };
    let script =
        "#!ipxe\nkernel http://h/k a=1 b || goto bad\ninitrd --name x http://h/i x\nboot\n:bad\nexit 1\n";
    assert_eq!(interpreter.start(script), fetch("http://h/k"));
    assert_eq!(interpreter.fetched(Fetched::Image), fetch("http://h/i"));
    let end = End::Booted { kernel: "k".into(), cmdline: "a=1 b".into(), images: vec!["x".into()] };
    assert_eq!(interpreter.fetched(Fetched::Image), Step::Done(end));
    assert_eq!(
        interpreter.clone().start("#!ipxe\nsanboot --no-describe --drive 0x80 || exit\n"),
        Step::Done(End::LocalBoot)
    );
    let mut failing = Interpreter::new(BTreeMap::new());
    failing.start(script);
    assert_eq!(failing.fetched(Fetched::Failed), Step::Done(End::Exited(false)));
}

#[test]
fn a_chained_script_runs_and_comes_back() {
    let mut interpreter = Interpreter::new(BTreeMap::new());
    let step = interpreter.start("#!ipxe\nchain http://h/s || echo failed\necho back\n");
    assert_eq!(step, Step::Fetch { url: "http://h/s".into() });
    let step = interpreter.fetched(Fetched::Script("#!ipxe\necho inner\n".into()));
    assert_eq!(step, Step::Done(End::Exited(true)));
    assert_eq!(interpreter.screen, "inner\nback\n");
}

const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const LEASE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

fn offer(yiaddr: Ipv4Addr, server: Ipv4Addr, class: &[u8], vendor: &[u8], file: &[u8]) -> super::dhcp::Offer {
    let mut buffer = [0; 1472];
    let mut header = Header::request_from("52:54:00:00:00:01".parse().unwrap(), 7);
    header.op = 2;
    header.yiaddr = yiaddr;
    header.siaddr = server;
    let mut out = Emitter::new(&mut buffer, &header).unwrap();
    out.file(file).unwrap();
    out.option(code::MESSAGE_TYPE, &[2]).unwrap();
    out.option(code::SERVER_ID, &server.octets()).unwrap();
    if !class.is_empty() {
        out.option(code::VENDOR_CLASS, class).unwrap();
    }
    if !vendor.is_empty() {
        out.option(code::VENDOR_SPECIFIC, vendor).unwrap();
    }
    let len = out.finish().unwrap();
    let message = Message::parse(&buffer[..len]).unwrap();
    super::dhcp::Offer::of(&message, SocketAddrV4::new(server, 67)).unwrap()
}

use std::net::SocketAddrV4;

const DIRECT: &[u8] = &[6, 1, 8, 255];
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

#[test]
fn uefi_chooses_as_edk2_does() {
    let plain = || offer(LEASE, OTHER, b"", b"", b"");
    let proxy = || offer(NOBODY, ME, b"PXEClient", DIRECT, b"a.efi");
    let combined = || offer(LEASE, ME, b"PXEClient", DIRECT, b"a.efi");
    let mistaken = || offer(LEASE, OTHER, b"PXEClient", b"", b"");
    let binl = || offer(NOBODY, ME, b"PXEClient", b"", b"");
    let choose = |offers: &[super::dhcp::Offer]| super::dhcp::choose(Kind::Uefi, offers);
    assert_eq!(choose(&[plain()]), None);
    assert_eq!(choose(&[proxy()]), None, "a proxy gives no address");
    let both = choose(&[proxy(), plain()]).unwrap();
    assert_eq!((both.lease.server, both.boot.unwrap().server, both.ask_boot_server), (OTHER, ME, false));
    assert!(!choose(&[plain(), proxy(), combined()]).unwrap().ask_boot_server);
    assert!(choose(&[plain(), binl()]).unwrap().ask_boot_server);
    // Option 60 without 43 in the lease: taken for a boot server, whatever else is on the table.
    assert!(choose(&[mistaken(), binl()]).unwrap().ask_boot_server);
}

#[test]
fn http_boot_needs_its_class_and_a_url() {
    let choose = |offers: &[super::dhcp::Offer]| super::dhcp::choose(Kind::Http, offers);
    let plain = offer(LEASE, OTHER, b"", b"", b"");
    let pxe = offer(NOBODY, ME, b"PXEClient", DIRECT, b"a.efi");
    let http = offer(NOBODY, ME, b"HTTPClient", b"", b"http://10.0.0.1/a.efi");
    assert_eq!(choose(&[plain.clone(), pxe]), None);
    assert_eq!(choose(&[plain, http]).unwrap().boot.unwrap().server, ME);
}

#[test]
fn ipxe_takes_the_leases_file_before_the_proxys() {
    let lease = offer(LEASE, OTHER, b"", b"", b"other.efi");
    let proxy = offer(NOBODY, ME, b"PXEClient", DIRECT, b"http://10.0.0.1/ipxe");
    let choice = super::dhcp::choose(Kind::Ipxe, &[lease, proxy]).unwrap();
    assert_eq!(choice.boot.unwrap().server, OTHER);
}

#[test]
fn a_relay_adds_what_the_server_needs_and_takes_it_off_again() {
    let relay = Relay { giaddr: Ipv4Addr::LOCALHOST, circuit: b"port 7".to_vec() };
    let asker = super::dhcp::Asker {
        speaks: Kind::Uefi,
        efi: true,
        mac: "52:54:00:00:00:01".parse().unwrap(),
        uuid: "4c4c4544-0042-3510-8052-b4c04f564231".parse().unwrap(),
        xid: 99,
    };
    let sent = asker.message(MessageType::Discover, None, NOBODY).unwrap();
    let relayed = relay.to_server(&sent).unwrap();
    let message = Message::parse(&relayed).unwrap();
    assert_eq!(message.giaddr(), Ipv4Addr::LOCALHOST);
    assert_eq!(message.hops(), 1);
    assert_eq!(message.option(code::RELAY_AGENT), Some(b"\x01\x06port 7\x13\x00".as_slice()));
    assert_eq!(message.arch(), Some(crate::wire::Arch::UEFI_X64));
    let back = Relay::to_machine(&relayed).unwrap();
    assert_eq!(Message::parse(&back).unwrap().option(code::RELAY_AGENT), None);
    assert_eq!(relay.to_server(b"short"), None);
}
