//! Cases from `tests/data/dhcp/cases.txt`, played against the machine.

use super::language::{Came, Case, Said, Step, US, cases};
use super::*;
use crate::proto::firmware::FirmwareKind;
use crate::wire::arch::{Cpu, Platform};

/// What the loader table of a site with one BIOS and one x64 loader says.
struct TwoLoaders;

impl BootPolicy for TwoLoaders {
    fn resolve(
        &mut self,
        who: &Identity,
        firmware: &Firmware,
        server: Ipv4Addr,
        _: &Wish<'_>,
        file: &mut BootFile,
    ) -> Answer {
        let loader = match (firmware.arch.platform(), firmware.arch.cpu()) {
            (Platform::Bios, _) => Some("undionly.kpxe"),
            (Platform::Efi, Cpu::X64) => Some("snponly.efi"),
            _ => None,
        };
        let written = match (firmware.kind, who.mac, loader) {
            (FirmwareKind::Ipxe(features), Some(mac), _) if features.http => {
                write!(file, "http://{server}:4433/ipxe?mac={mac}")
            }
            (FirmwareKind::HttpBoot, _, Some(loader)) => {
                write!(file, "http://{server}:4433/loaders/{loader}")
            }
            (FirmwareKind::Ipxe(_) | FirmwareKind::Pxe, _, Some(loader)) => write!(file, "{loader}"),
            _ => return Answer::NoBoot,
        };
        written.expect("these names fit");
        Answer::Boot
    }
}

fn settings(name: &str) -> Settings {
    let net = |text: &str| text.parse().expect("a network");
    let ip = |text: &str| text.parse().expect("an address");
    let lan = Subnet {
        range: Some((ip("10.77.8.0"), ip("10.77.135.255"))),
        router: Some(US),
        dns: vec![US, ip("10.77.0.3")],
        domain: Some("lab.test".into()),
        options: vec![SiteOption { code: 150, body: vec![10, 77, 0, 9] }],
        ..Subnet::new(net("10.77.0.0/16"))
    };
    let far = Subnet {
        range: Some((ip("10.88.0.100"), ip("10.88.0.150"))),
        next_server: Some(ip("10.77.0.9")),
        lease: Duration::from_secs(7200),
        ..Subnet::new(net("10.88.0.0/24"))
    };
    let bare = Subnet::new(net("10.99.0.0/24"));
    let desk = Reservation { who: ReservedFor::ClientId(b"desk8".to_vec()), ip: ip("10.77.0.50") };
    let port = Reservation { who: ReservedFor::Circuit(b"port17".to_vec()), ip: ip("10.88.0.60") };
    let mode = match name {
        "proxy" => Mode::Proxy,
        "full" | "open" => Mode::Full,
        other => panic!("no setting {other}"),
    };
    Settings {
        mode,
        subnets: vec![lan, far, bare],
        reservations: vec![desk, port],
        authoritative: name != "open",
        ..Settings::default()
    }
}

#[test]
fn every_case_is_answered_as_written_down() {
    let all = cases();
    assert!(all.len() >= 300, "{}", all.len());
    let wrong: Vec<String> = all
        .iter()
        .filter_map(|(number, name, setting, steps)| {
            play(*number, setting, steps).err().map(|what| format!("{setting}: {name}: {what}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn play(number: usize, setting: &str, steps: &str) -> Result<(), String> {
    let mut lab = Lab::new(settings(setting));
    let mut case = Case::new(number);
    for (index, text) in steps.split(" ; ").enumerate() {
        let (said, expected) = match case.read(text) {
            Step::Wait(time) => {
                lab.now += time;
                continue;
            }
            Step::Say(said, expected) => (said, expected),
        };
        let (verdict, came) = hear(&mut lab, &said);
        case.check(&said, &expected, came.as_ref())
            .map_err(|what| format!("step {index}: {what} ({verdict:?})"))?;
        silence(&expected, &verdict).map_err(|what| format!("step {index}: {what}"))?;
        lab.server.leases.check();
    }
    Ok(())
}

fn hear(lab: &mut Lab, said: &Said) -> (Verdict, Option<Came>) {
    let interface = lab.interface.clone();
    let port = if said.port == 67 { ServerPort::Dhcp } else { ServerPort::BootServer };
    let input = Input {
        interface: &interface,
        port,
        src: said.src,
        src_mac: Some(said.src_mac),
        dst: said.dst.unwrap_or(Ipv4Addr::BROADCAST),
        local: US,
        bytes: &said.bytes,
    };
    let verdict = lab.server.handle(lab.now, &input, &mut TwoLoaders, &mut lab.out);
    let came = match verdict {
        Verdict::Reply(output, _) => Some(Came {
            bytes: lab.out[..output.len].to_vec(),
            to: match output.to {
                To::Broadcast => "bcast".into(),
                To::Link { mac, .. } if mac == said.src_mac => "link".into(),
                To::Link { mac, .. } => format!("link to {mac}"),
                To::Unicast(to) => to.to_string(),
            },
            from_port: output.port.number(),
        }),
        Verdict::Heard(_) | Verdict::Probe(_) | Verdict::Drop(_) => None,
    };
    (verdict, came)
}

/// Why nothing came, where the case says why.
fn silence(expected: &str, verdict: &Verdict) -> Result<(), String> {
    let found = match verdict {
        Verdict::Drop(reason) => format!("reason={}", reason.word()),
        Verdict::Probe(_) => "probe".into(),
        Verdict::Heard(event) => format!(
            "heard={}",
            match event.what {
                DhcpStep::OverheardRequest { .. } => "overheard-request",
                DhcpStep::OtherServerOffer { .. } => "other-server-offer",
                DhcpStep::OtherServerAck { .. } => "other-server-ack",
                DhcpStep::Released => "released",
                DhcpStep::Declined => "declined",
                _ => "something else",
            }
        ),
        Verdict::Reply(..) => return Ok(()),
    };
    match expected.split_whitespace().nth(1) {
        Some(wanted) if wanted != found => Err(format!("{found}, not {wanted}")),
        _ => Ok(()),
    }
}
