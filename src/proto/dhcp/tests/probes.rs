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
    let mut heard = |ip| lab.server.heard_from(lab.now, ip, Some(squatter));
    assert_eq!(heard(OTHER), ProbeAnswer::Unasked);
    assert_eq!(heard(first), ProbeAnswer::InUse);
    assert_eq!(heard(first), ProbeAnswer::Unasked, "told once");
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
    let own = Some(MacAddr([0x52, 0x54, 0, 0x77, 0, 1]));
    assert_eq!(lab.server.heard_from(lab.now, asked, own), ProbeAnswer::ItsOwn);
    assert_eq!(lab.reply(&discover).1.yiaddr(), asked);
    assert_eq!(notices(&mut lab), []);
}

/// A server with a hundred addresses, each of which somebody answers for when it is asked for.
struct Stranger {
    lab: Lab,
    claims: u8,
    /// How often an operator was told that there are too many.
    told: usize,
    /// One hardware address, or another one each time; by ICMP none is known.
    by: fn(u8) -> Option<MacAddr>,
}

impl Stranger {
    fn new(by: fn(u8) -> Option<MacAddr>) -> Self {
        let range = Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)));
        let subnets = vec![Subnet { range, ..Subnet::new(network()) }];
        // Longer than the questions take.
        let offer_hold = Duration::from_secs(3600);
        Self { lab: Lab::new(Settings { subnets, offer_hold, ..asking() }), claims: 0, told: 0, by }
    }

    /// A machine asks until it is offered something; how many addresses were put aside before it was.
    fn boots(&mut self, mac: u8) -> u8 {
        let bytes = Client { mac, ..uefi() }.bytes();
        let before = self.claims;
        loop {
            match self.lab.broadcast(&bytes) {
                Verdict::Probe(probe) => {
                    let by = (self.by)(self.claims);
                    match self.lab.server.heard_from(self.lab.now, probe.ip, by) {
                        ProbeAnswer::InUse => self.claims += 1,
                        ProbeAnswer::Disbelieved => {
                            let again = self.lab.broadcast(&bytes);
                            assert_eq!(
                                again,
                                Verdict::Drop(DropReason::Probing),
                                "it is waited for as before"
                            );
                            self.lab.now = probe.until;
                        }
                        other => panic!("{other:?}"),
                    }
                    let is = |notice: &Notice| matches!(notice, Notice::Disbelieved { .. });
                    self.told += notices(&mut self.lab).into_iter().filter(is).count();
                }
                Verdict::Reply(..) => return self.claims - before,
                other => panic!("machine {mac}: {other:?}"),
            }
        }
    }
}

#[test]
fn who_answers_for_every_address_is_not_believed_for_long() {
    let mut stranger = Stranger::new(|_| Some(MacAddr([2, 0, 0, 0, 0, 0x66])));
    assert_eq!(stranger.boots(1), probe::CLAIMS_OF_ONE_MAX as u8);
    // Somebody else has one address, and is believed.
    let other = probe(stranger.lab.broadcast(&Client { mac: 2, ..uefi() }.bytes()));
    let heard =
        stranger.lab.server.heard_from(stranger.lab.now, other.ip, Some(MacAddr([2, 0, 0, 0, 0, 0x67])));
    assert_eq!(heard, ProbeAnswer::InUse);
    // Eighty are as many as machines that are not registered may have of a hundred, what is put aside of theirs included.
    assert!((2..=71).all(|mac| stranger.boots(mac) == 0), "every other address is given");
    assert_eq!(stranger.told, 1);
    stranger.lab.server.leases.check();
    // When those addresses come back, so does the doubt.
    stranger.lab.now += leases::QUARANTINE;
    stranger.lab.server.handle_timeout(stranger.lab.now);
    assert_eq!(stranger.boots(93), probe::CLAIMS_OF_ONE_MAX as u8);
    assert_eq!(stranger.told, 2);
}

#[test]
fn the_last_quarter_of_a_pool_is_given_whoever_says_that_it_is_taken() {
    let made_up: fn(u8) -> Option<MacAddr> = |n| Some(MacAddr([2, 0, 0, 0, 1, n]));
    for by in [made_up, |_| None] {
        let mut stranger = Stranger::new(by);
        assert_eq!(stranger.boots(1), 75);
        // Most of that quarter is kept for registered machines.
        assert!((2..=5).chain(REGISTERED).all(|mac| stranger.boots(mac) == 0));
        assert_eq!(stranger.told, 1);
    }
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
