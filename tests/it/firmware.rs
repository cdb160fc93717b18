//! Real firmware, booting to Linux's init, in every kind of network.

use std::time::Duration;

use labkit::{DISK_WORD, Firmware, INIT_WORD, Machine, MachineSpec};

use crate::server::{BRIDGE, FULL, Net, PROXY, Server, Site};

/// An emulated boot takes 25 to 45 s on an idle machine; CI machines are neither idle nor fast.
const PATIENCE: Duration = Duration::from_secs(300);

/// Boots a machine that has a job, and checks what its kernel was told.
fn boots_its_job(net: &Net, server: &Server<'_>, spec: &MachineSpec) {
    let added = server.site.ask(&["job", "add", "tiny", "--mac", &spec.mac]);
    let job = added
        .split_whitespace()
        .find(|word| word.starts_with('j'))
        .expect("the answer names the job")
        .to_owned();
    let mut machine = Machine::start(spec, net.machines(), BRIDGE, &server.site.dir.0);
    let line = machine.wait_for(INIT_WORD, PATIENCE);
    for wanted in
        [format!("bootstorm.mac={}", spec.mac), format!("bootstorm.job={job}"), "console=ttyS0".into()]
    {
        assert!(line.contains(&wanted), "{wanted} is not on the command line: {line}");
    }
    let shown = server.site.ask(&["job", "show", &job]);
    assert!(shown.contains("running"), "every byte was delivered, yet: {shown}");
    let story = server.site.ask(&["explain", &spec.mac]);
    let loader = spec.firmware != Firmware::Bios;
    for stage in ["DHCP", "script", "vmlinuz", "initrd.gz"].into_iter().chain(loader.then_some("snponly.efi"))
    {
        assert!(story.contains(stage), "the timeline has no {stage}:\n{story}");
    }
}

fn full(driver: &str, firmware: Firmware, number: u8) {
    let net = Net::flat();
    let site = Site::new(net.interface, driver, FULL);
    site.add_linux();
    let server = site.serve(&net);
    assert!(server.ready.contains(&format!("driver={driver}")), "{}", server.ready);
    boots_its_job(&net, &server, &MachineSpec::new(firmware, number));
    server.stop();
}

#[test]
fn bios_boots_alone_with_us_without_the_ring() {
    full("mio", Firmware::Bios, 1);
}

#[test]
fn bios_boots_alone_with_us_with_the_ring() {
    full("uring", Firmware::Bios, 2);
}

#[test]
fn uefi_boots_through_the_tftp_loader_without_the_ring() {
    full("mio", Firmware::Uefi, 3);
}

#[test]
fn uefi_boots_through_the_tftp_loader_with_the_ring() {
    full("uring", Firmware::Uefi, 4);
}

#[test]
fn uefi_http_boot_needs_no_tftp() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    site.add_linux();
    let server = site.serve(&net);
    boots_its_job(&net, &server, &MachineSpec::new(Firmware::UefiHttp, 5));
    assert_eq!(server.metric(&net, "bootstorm_tftp_requests_total"), 0, "the loader came by HTTP");
    server.stop();
}

fn proxy(firmware: Firmware, number: u8) {
    let folder = labkit::TempDir::new("net");
    let net = Net::with_dnsmasq(&folder.0);
    let site = Site::new(net.interface, "auto", PROXY);
    site.add_linux();
    let server = site.serve(&net);
    let spec = MachineSpec::new(firmware, number);
    boots_its_job(&net, &server, &spec);
    let dnsmasq = net.helpers[0].output();
    assert!(dnsmasq.contains("DHCPACK"), "the address came from the LAN's own server:\n{dnsmasq}");
    server.stop();
}

#[test]
fn bios_boots_beside_another_dhcp_server() {
    proxy(Firmware::Bios, 6);
}

#[test]
fn uefi_boots_beside_another_dhcp_server() {
    proxy(Firmware::Uefi, 7);
}

fn relay(firmware: Firmware, number: u8) {
    let folder = labkit::TempDir::new("net");
    let net = Net::relayed(&folder.0);
    let site = Site::new(net.interface, "auto", FULL);
    site.add_linux();
    let server = site.serve(&net);
    boots_its_job(&net, &server, &MachineSpec::new(firmware, number));
    server.stop();
}

#[test]
fn bios_boots_across_a_relay() {
    relay(Firmware::Bios, 8);
}

#[test]
fn uefi_boots_across_a_relay() {
    relay(Firmware::Uefi, 9);
}

#[test]
fn a_bios_machine_without_a_job_sees_the_menu_then_boots_its_disk() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", &format!("{FULL}[policy]\nmenu_timeout = \"3s\"\n"));
    site.add_linux();
    let server = site.serve(&net);
    let mut spec = MachineSpec::new(Firmware::Bios, 10);
    spec.disk = Some(labkit::local_disk(&site.dir.0));
    let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
    machine.wait_for(DISK_WORD, PATIENCE);
    let story = site.ask(&["explain", &spec.mac]);
    assert!(story.contains("menu"), "it was shown the menu first:\n{story}");
    server.stop();
}

#[test]
fn a_uefi_machine_without_a_job_sees_the_menu_then_goes_on_with_its_boot_order() {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", &format!("{FULL}[policy]\nmenu_timeout = \"3s\"\n"));
    site.add_linux();
    let server = site.serve(&net);
    let spec = MachineSpec::new(Firmware::Uefi, 11);
    let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
    // The entry behind the network in this firmware's boot order; it tries HTTP Boot, and gets the menu again, first.
    machine.wait_for("UEFI Interactive Shell", PATIENCE);
    assert!(machine.serial().contains("bootstorm: booting from the local disk"));
    let story = site.ask(&["explain", &spec.mac]);
    assert!(story.contains("menu"), "it was shown the menu first:\n{story}");
    server.stop();
}
