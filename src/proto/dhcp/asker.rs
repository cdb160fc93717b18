//! One request, read: who asks, through which subnet, and where the answer goes.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::leases::Hardware;
use super::policy::BootFile;
use super::settings::{Network, Subnet};
use super::verdict::{CLIENT_PORT, DhcpEvent, DhcpStep, DropReason, Input, SERVER_PORT, ServerPort, To};
use crate::jobs::rule::CircuitMark;
use crate::proto::firmware::Firmware;
use crate::wire::dhcp::{Message, MessageType, SubOptions, code, relay};
use crate::wire::{Arch, MacAddr, Uuid};

/// A request of one client, everything about it that is not a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) message: Message<'a>,
    pub(super) kind: MessageType,
    pub(super) mac: Option<MacAddr>,
    pub(super) uuid: Option<Uuid>,
    pub(super) hardware: Hardware,
    pub(super) firmware: Option<Firmware>,
    /// Index into the settings' subnets.
    pub(super) subnet: Option<usize>,
    /// Our address this client's answers leave from.
    pub(super) local: Ipv4Addr,
    /// Option 54: the same, or what its relay wants it to be.
    pub(super) server_id: Ipv4Addr,
    /// Body of option 82's circuit id.
    pub(super) circuit: Option<&'a [u8]>,
    /// The same for whoever must remember it.
    pub(super) circuit_mark: Option<CircuitMark>,
    /// Option 82's relay source port was sent.
    own_port: bool,
    /// Where this client's boot files come from: siaddr.
    pub(super) server: Ipv4Addr,
}

impl<'a> Asker<'a> {
    /// Reads a message with `op` 1. `subnets` has the longest prefixes first.
    pub(super) fn read(
        input: &'a Input<'a>,
        message: Message<'a>,
        subnets: &[Subnet],
    ) -> Result<Self, DropReason> {
        let kind = message.message_type().ok_or(DropReason::NoMessageType)?;
        if !matches!(
            kind,
            MessageType::Discover
                | MessageType::Request
                | MessageType::Decline
                | MessageType::Release
                | MessageType::Inform
        ) {
            return Err(DropReason::OddMessageType);
        }
        let plausible = |ip: Ipv4Addr| ip.is_unspecified() || is_host(ip);
        if !plausible(message.giaddr())
            || !plausible(message.ciaddr())
            || !plausible(*input.src.ip())
            || input.src.port() == 0
        {
            return Err(DropReason::BadAddress);
        }
        let (mac, uuid) = identities(input, &message).ok_or(DropReason::NoHardwareAddress)?;
        let local = local_address(input).ok_or(DropReason::NoLocalAddress)?;
        let relayed = specified(message.giaddr()).is_some();
        let agent = Agent::read(message.option(code::RELAY_AGENT).unwrap_or_default());
        let subnet = subnet_of(input, &message, &agent, subnets);
        let next_server = subnet.and_then(|index| subnets.get(index)?.next_server);
        Ok(Self {
            input,
            message,
            kind,
            mac,
            uuid,
            hardware: Hardware::of(&message),
            firmware: Firmware::recognise(&message),
            subnet,
            local,
            // RFC 5107 §4: then renewals go to the relay, which passes them on.
            server_id: agent.server_id.filter(|ip| relayed && is_host(*ip)).unwrap_or(local),
            circuit: agent.circuit,
            // Beyond this exchange it counts as a relay said it: what a client says of itself opens nothing to it.
            circuit_mark: agent.circuit.filter(|_| relayed).map(CircuitMark::of),
            own_port: agent.own_port,
            server: next_server.unwrap_or(local),
        })
    }

    /// True when `server_id` (option 54) is one of ours.
    pub(super) fn is_us(&self, server_id: Ipv4Addr) -> bool {
        [self.local, self.server_id, self.input.interface.addr].contains(&server_id)
            || unicast_destination(self.input) == Some(server_id)
    }

    /// The relay the request came through.
    pub(super) fn relay(&self) -> Option<Ipv4Addr> {
        specified(self.message.giaddr())
    }

    /// The address the client says it has.
    pub(super) fn ciaddr(&self) -> Option<Ipv4Addr> {
        specified(self.message.ciaddr())
    }

    /// The architecture, when the message or an earlier one names it.
    pub(super) fn arch(&self) -> Option<Arch> {
        self.firmware.filter(|firmware| firmware.arch_stated).map(|firmware| firmware.arch)
    }

    /// Where a reply goes (RFC 2131 §4.1, RFC 3046 §2.2, RFC 8357 §4, PXE 2.1 §2.4). `heard_nothing`: the client did
    /// not react to a unicast reply before.
    pub(super) fn destination(&self, reply: MessageType, yiaddr: Ipv4Addr, heard_nothing: bool) -> To {
        let source_port = self.input.src.port();
        if self.input.port == ServerPort::BootServer {
            return To::Unicast(self.input.src);
        }
        if let Some(giaddr) = self.relay() {
            return To::Unicast(SocketAddrV4::new(
                giaddr,
                if self.own_port { source_port } else { SERVER_PORT },
            ));
        }
        if reply == MessageType::Nak {
            return To::Broadcast;
        }
        if let Some(ciaddr) = self.ciaddr() {
            return To::Unicast(SocketAddrV4::new(ciaddr, source_port));
        }
        match self.message.mac() {
            Some(mac) if !yiaddr.is_unspecified() && !self.message.wants_broadcast() && !heard_nothing => {
                To::Link { mac, to: SocketAddrV4::new(yiaddr, CLIENT_PORT) }
            }
            _ => To::Broadcast,
        }
    }

    /// A timeline entry about this client.
    pub(super) fn event(&self, what: DhcpStep, ip: Option<Ipv4Addr>, file: BootFile) -> DhcpEvent {
        DhcpEvent {
            what,
            mac: self.mac,
            uuid: self.uuid,
            xid: self.message.xid(),
            arch: self.arch(),
            kind: self.firmware.map(|firmware| firmware.kind),
            relay: self.relay(),
            circuit: self.circuit_mark,
            ip,
            file,
        }
    }
}

/// What option 82 says that matters here; of several of a kind the first counts.
#[derive(Clone, Copy, Default)]
struct Agent<'a> {
    circuit: Option<&'a [u8]>,
    link: Option<Ipv4Addr>,
    server_id: Option<Ipv4Addr>,
    own_port: bool,
}

impl<'a> Agent<'a> {
    fn read(body: &'a [u8]) -> Self {
        let address = |body: &[u8]| <[u8; 4]>::try_from(body).ok().map(Ipv4Addr::from);
        let mut agent = Self::default();
        for (sub, body) in SubOptions::relay_agent(body) {
            match sub {
                relay::CIRCUIT_ID => agent.circuit = agent.circuit.or(Some(body)),
                relay::LINK_SELECTION => agent.link = agent.link.or_else(|| address(body)),
                relay::SERVER_ID_OVERRIDE => agent.server_id = agent.server_id.or_else(|| address(body)),
                relay::SOURCE_PORT => agent.own_port = true,
                _ => {}
            }
        }
        agent
    }
}

/// `None` for 0.0.0.0.
pub(super) fn specified(ip: Ipv4Addr) -> Option<Ipv4Addr> {
    (!ip.is_unspecified()).then_some(ip)
}

/// True for an address one machine can have on a network: not 0/8, 127/8, multicast, 240/4 or broadcast.
fn is_host(ip: Ipv4Addr) -> bool {
    !matches!(ip.octets()[0], 0 | 224..)
}

/// Who the message is from. Firmware set to send its UUID as hardware address (hlen 16) has its MAC in the frame.
pub(super) fn identities(
    input: &Input<'_>,
    message: &Message<'_>,
) -> Option<(Option<MacAddr>, Option<Uuid>)> {
    let uuid = message.uuid();
    if let Some(mac) = message.mac() {
        return Some((Some(mac), uuid));
    }
    if message.hlen() != 16 {
        return None;
    }
    let guid = <[u8; 16]>::try_from(message.chaddr()).ok().map(Uuid::from_smbios);
    // Through a relay the frame is the relay's.
    let direct = message.giaddr().is_unspecified() && message.op() == crate::wire::dhcp::OP_REQUEST;
    let mac = input.src_mac.filter(|mac| direct && !mac.is_zero() && !mac.is_group());
    Some((mac, uuid.or(guid)))
}

/// The destination, when the request was sent to an address of ours and not to many.
fn unicast_destination(input: &Input<'_>) -> Option<Ipv4Addr> {
    let directed_broadcast = input.interface.network.broadcast();
    (is_host(input.dst) && input.dst != directed_broadcast).then_some(input.dst)
}

/// Our address as this client knows it.
pub(super) fn local_address(input: &Input<'_>) -> Option<Ipv4Addr> {
    specified(input.local).or_else(|| unicast_destination(input)).or_else(|| specified(input.interface.addr))
}

/// The subnet a request comes from: through a relay the one of the link selection (RFC 3527 §3: it stands for giaddr
/// when present) or of giaddr; from a client that has an address and sent to us alone, the one of that address;
/// else the interface's.
fn subnet_of(
    input: &Input<'_>,
    message: &Message<'_>,
    agent: &Agent<'_>,
    subnets: &[Subnet],
) -> Option<usize> {
    let of = |ip: Ipv4Addr| subnets.iter().position(|subnet| subnet.network.contains(ip));
    if let Some(giaddr) = specified(message.giaddr()) {
        return of(agent.link.unwrap_or(giaddr));
    }
    match specified(message.ciaddr()) {
        Some(ciaddr) if unicast_destination(input).is_some() => of(ciaddr),
        _ => of(specified(input.interface.addr)?),
    }
}

/// Longest prefixes first, so that the first subnet that contains an address is the narrowest.
pub(super) fn sort_narrowest_first(subnets: &mut [Subnet]) {
    subnets.sort_by_key(|subnet| std::cmp::Reverse(Network::prefix(subnet.network)));
}
