//! Whether an answer to what came by frame may go back the way it came.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::proto::dhcp::Interface;
use crate::sys::udp::source_towards;

/// So long an answer of routing is believed.
const BELIEVED: Duration = Duration::from_secs(10);
/// Hosts that are remembered, one in each place; a newer one takes the place.
const PLACES: usize = 256;

/// What routing said of hosts behind routers, relays most of all. Whoever makes up their addresses fills it, and costs a
/// question of routing each.
#[derive(Debug, Default)]
pub(super) struct Ways {
    places: Box<[Option<Way>]>,
}

#[derive(Clone, Copy, Debug)]
struct Way {
    to: Ipv4Addr,
    /// Our address that routing would send from, if it would at all.
    local: Option<Ipv4Addr>,
    until: Instant,
}

impl Ways {
    /// True when the host is on this interface's own network, or routing sends to it from this interface's address: then
    /// the neighbour that brought its message takes the answer as well. Behind another router the frame might end where
    /// nobody forwards it.
    pub(super) fn leads_back(&mut self, now: Instant, interface: &Interface, to: SocketAddrV4) -> bool {
        interface.network.contains(*to.ip())
            || self.local(now, *to.ip(), || source_towards(to).ok()) == Some(interface.addr)
    }

    fn local(
        &mut self,
        now: Instant,
        to: Ipv4Addr,
        ask: impl FnOnce() -> Option<Ipv4Addr>,
    ) -> Option<Ipv4Addr> {
        if self.places.is_empty() {
            self.places = vec![None; PLACES].into_boxed_slice();
        }
        // Relays differ in network and host bits: each byte counts.
        let place = to.octets().iter().fold(0, |place: u8, byte| place.rotate_left(3) ^ byte);
        let place = &mut self.places[usize::from(place)];
        match place {
            Some(way) if way.to == to && now < way.until => way.local,
            _ => {
                let local = ask();
                *place = Some(Way { to, local, until: now + BELIEVED });
                local
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_is_asked_once_in_ten_seconds_and_for_each_host() {
        let us = Ipv4Addr::new(10, 77, 0, 1);
        let relay = Ipv4Addr::new(10, 88, 0, 1);
        let start = Instant::now();
        let mut ways = Ways::default();
        assert_eq!(ways.local(start, relay, || Some(us)), Some(us));
        let never = || panic!("asked again");
        assert_eq!(ways.local(start + BELIEVED / 2, relay, never), Some(us));
        assert_eq!(ways.local(start + BELIEVED, relay, || None), None, "it may have changed");
        for host in 0..2000u32 {
            let other = Ipv4Addr::from_bits(0x0a59_0000 + host * 257);
            assert_eq!(ways.local(start, other, || Some(other)), Some(other), "never another host's");
        }
        assert!(ways.places.len() == PLACES);
    }

    #[test]
    fn a_neighbour_needs_no_route() {
        let addr = Ipv4Addr::new(198, 51, 100, 1);
        let interface = Interface {
            index: 7,
            name: "eth7".into(),
            addr,
            network: crate::proto::dhcp::Network::new(addr, 24).unwrap(),
            mac: crate::wire::MacAddr([2, 0, 0, 0, 0, 7]),
            mtu: 1500,
        };
        let mut ways = Ways::default();
        let back =
            |ways: &mut Ways, to| ways.leads_back(Instant::now(), &interface, SocketAddrV4::new(to, 67));
        assert!(back(&mut ways, Ipv4Addr::new(198, 51, 100, 9)));
        // This machine does not have that address, so routing never sends from it.
        assert!(!back(&mut ways, Ipv4Addr::LOCALHOST));
    }
}
