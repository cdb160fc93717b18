//! Addresses asked for before they are offered first.

use super::*;

const WAIT: Duration = Duration::from_millis(300);

fn asking() -> Settings {
    Settings { probe: WAIT, ..full() }
}

fn probe(verdict: Verdict) -> Probe {
    let Verdict::Probe(probe) = verdict else { panic!("{verdict:?}") };
    probe
}

#[test]
fn an_address_is_asked_for_before_it_is_offered_first() {
    let mut lab = Lab::new(asking());
    let discover = Client { flags: 0, ..uefi() };
    let asked = probe(lab.broadcast(&discover.bytes()));
    assert_eq!((asked.relay, asked.until), (None, lab.now + WAIT));
    lab.now += WAIT / 2;
    assert_eq!(lab.broadcast(&discover.bytes()), Verdict::Drop(DropReason::Probing), "it asks again itself");
    lab.now = asked.until;
    let (output, offer) = lab.reply(&discover.bytes());
    assert_eq!(offer.yiaddr(), asked.ip);
    assert!(matches!(output.to, To::Link { .. }), "the first answer is no repeated one: {output:?}");
    lab.reply(&request_for(asked.ip, US).bytes());
    // It has the address, and after its term it had it last: nothing is asked again.
    for later in [60, 2 * 3600] {
        lab.now += Duration::from_secs(later);
        lab.server.handle_timeout(lab.now);
        assert_eq!(lab.reply(&with_xid(&discover, later as u32)).1.yiaddr(), asked.ip);
    }
    // Another machine that gets it one day is to hear of whoever took it meanwhile.
    lab.now += Duration::from_secs(3600);
    lab.server.handle_timeout(lab.now);
    for mac in 2..=5 {
        probe(lab.broadcast(&Client { mac, ..uefi() }.bytes()));
    }
}

#[test]
fn an_address_somebody_has_is_not_offered() {
    let mut lab = journalling(asking());
    let discover = uefi().bytes();
    let first = probe(lab.broadcast(&discover)).ip;
    let squatter = MacAddr([2, 0, 0, 0, 0, 0x66]);
    assert!(!lab.server.heard_from(lab.now, OTHER, Some(squatter)), "nobody asked for that one");
    assert!(lab.server.heard_from(lab.now, first, Some(squatter)));
    assert!(!lab.server.heard_from(lab.now, first, Some(squatter)), "told once");
    assert_eq!(notices(&mut lab), [Notice::InUse { ip: first, by: Some(squatter) }]);
    let kept = changes(&mut lab).0;
    assert!(
        matches!(kept[..], [Change::Lease(LeaseRecord { ip, term: LeaseTerm::Quarantined { .. }, .. })] if ip == first),
        "{kept:?}"
    );
    let second = probe(lab.broadcast(&discover));
    assert_ne!(second.ip, first);
    lab.now = second.until;
    assert_eq!(lab.reply(&discover).1.yiaddr(), second.ip);
    // Whoever asks, for ten minutes nobody is offered it.
    for mac in 2..=3 {
        let bytes = Client { mac, ..uefi() }.bytes();
        let asked = probe(lab.broadcast(&bytes));
        assert_ne!(asked.ip, first);
        lab.now = asked.until;
        lab.reply(&bytes);
    }
    assert_eq!(lab.broadcast(&Client { mac: 4, ..uefi() }.bytes()), Verdict::Drop(DropReason::PoolExhausted));
    lab.server.leases.check();
}

#[test]
fn a_machine_that_answers_for_its_own_address_may_have_it() {
    let mut lab = Lab::new(asking());
    let discover = uefi().bytes();
    let asked = probe(lab.broadcast(&discover)).ip;
    assert!(lab.server.heard_from(lab.now, asked, Some(MacAddr([0x52, 0x54, 0, 0x77, 0, 1]))));
    assert_eq!(lab.reply(&discover).1.yiaddr(), asked);
    assert_eq!(notices(&mut lab), []);
}

#[test]
fn behind_a_relay_it_is_asked_for_another_way() {
    let mut settings = asking();
    let remote = Network::new(Ipv4Addr::new(10, 88, 0, 0), 24).unwrap();
    let range = Some((Ipv4Addr::new(10, 88, 0, 100), Ipv4Addr::new(10, 88, 0, 109)));
    settings.subnets.push(Subnet { range, ..Subnet::new(remote) });
    let mut lab = Lab::new(settings);
    let discover = Client { giaddr: RELAY, ..uefi() }.bytes();
    let src = SocketAddrV4::new(RELAY, 67);
    let asked = probe(lab.hear(ServerPort::Dhcp, src, US, &discover));
    assert_eq!(asked.relay, Some(RELAY));
    lab.now = asked.until;
    assert!(matches!(lab.hear(ServerPort::Dhcp, src, US, &discover), Verdict::Reply(..)));
}

#[test]
fn a_proxy_and_who_has_its_offer_ask_nobody() {
    let mut lab = Lab::new(Settings { probe: WAIT, ..proxy() });
    lab.reply(&uefi().bytes());
    // Switched on at a reload: what was offered before is offered still.
    let mut lab = Lab::new(full());
    let address = lab.reply(&uefi().bytes()).1.yiaddr();
    lab.server.replace_settings(asking());
    assert_eq!(lab.reply(&uefi().bytes()).1.yiaddr(), address);
    probe(lab.broadcast(&Client { mac: 2, ..uefi() }.bytes()));
    // And off: who waits is answered.
    lab.server.replace_settings(full());
    lab.reply(&Client { mac: 2, ..uefi() }.bytes());
}

#[test]
fn a_storm_of_strangers_is_asked_for_within_bounds() {
    let network = Network::new(Ipv4Addr::new(10, 77, 0, 0), 16).unwrap();
    let range = Some((Ipv4Addr::new(10, 77, 8, 0), Ipv4Addr::new(10, 77, 135, 255)));
    let subnets = vec![Subnet { range, ..Subnet::new(network) }];
    let mut lab = Lab::new(Settings { subnets, ..asking() });
    let mut ask = |n: u32| {
        let mut bytes = uefi().bytes();
        // The last byte stays: one value of it is never answered.
        bytes[29..33].copy_from_slice(&n.to_be_bytes());
        lab.now += Duration::from_micros(10);
        lab.broadcast(&bytes)
    };
    let max = probe::PROBES_MAX as u32;
    assert!((0..max).all(|n| matches!(ask(n), Verdict::Probe(_))));
    assert!((max..max + 100).all(|n| matches!(ask(n), Verdict::Reply(..))), "unasked, but offered");
    lab.now += WAIT;
    probe(lab.broadcast(&Client { mac: 200, ..uefi() }.bytes()));
}
