//! What goes into the DHCP machine and what comes out.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Serialize;

use super::policy::BootFile;
use super::probe::Probe;
use super::settings::Network;
use crate::jobs::rule::CircuitMark;
use crate::proto::firmware::FirmwareKind;
use crate::wire::dhcp::Error;
use crate::wire::{Arch, MacAddr, Uuid};

/// A network interface DHCP is answered on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's index.
    pub index: u32,
    /// The kernel's name.
    pub name: String,
    /// Our address on it.
    pub addr: Ipv4Addr,
    /// The network of that address.
    pub network: Network,
    /// Our hardware address on it.
    pub mac: MacAddr,
    /// Longest IP packet, bytes.
    pub mtu: u32,
}

/// Which of our two ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerPort {
    /// 67.
    Dhcp,
    /// 4011, the PXE boot server's.
    BootServer,
}

impl ServerPort {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::Dhcp => SERVER_PORT,
            Self::BootServer => BOOT_SERVER_PORT,
        }
    }
}

/// Where DHCP servers and relays listen.
pub const SERVER_PORT: u16 = 67;
/// Where DHCP clients listen.
pub const CLIENT_PORT: u16 = 68;
/// Where PXE boot servers listen.
pub const BOOT_SERVER_PORT: u16 = 4011;

/// One datagram and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The interface it came in on.
    pub interface: &'a Interface,
    /// The port it came to.
    pub port: ServerPort,
    /// Where it came from.
    pub src: SocketAddrV4,
    /// Ethernet source, when it was read as a frame.
    pub src_mac: Option<MacAddr>,
    /// Where it went to: one of our addresses, or a broadcast or multicast one.
    pub dst: Ipv4Addr,
    /// Our address it reached or, for a broadcast or relayed one, from which the answer would be routed.
    /// Unspecified: not known.
    pub local: Ipv4Addr,
    /// UDP payload.
    pub bytes: &'a [u8],
}

/// Where a reply goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// 255.255.255.255:68 out of the interface the request came in on.
    Broadcast,
    /// By ordinary routing.
    Unicast(SocketAddrV4),
    /// To an address the client does not yet own, so without ARP: as a frame to its hardware address, or else by
    /// broadcast.
    Link {
        /// Ethernet destination.
        mac: MacAddr,
        /// IPv4 destination and port.
        to: SocketAddrV4,
    },
}

/// A reply; its bytes are in the buffer that was handed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Output {
    /// Where it goes.
    pub to: To,
    /// The address it must leave from, the same as its option 54.
    pub from: Ipv4Addr,
    /// The port it must leave from.
    pub port: ServerPort,
    /// Bytes of it.
    pub len: usize,
    /// It gives an address: it must not leave before the change of this number is stored ([`super::Server::changes`]).
    /// 0: at once.
    pub stored: u64,
}

/// What came of one datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "made once per datagram and matched at once; a box would be the hot path's only allocation"
)]
pub enum Verdict {
    /// Send this; it means that.
    Reply(Output, DhcpEvent),
    /// Nothing to send, but something was learnt.
    Heard(DhcpEvent),
    /// Nothing yet: ask whether anybody has this address, keep the message, and hand it in again when nobody answered, or
    /// when [`super::Server::heard_from`] says so.
    Probe(Probe),
    /// Nothing, and why.
    Drop(DropReason),
}

/// One line of a machine's timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DhcpEvent {
    /// What happened.
    pub what: DhcpStep,
    /// The machine's hardware address.
    pub mac: Option<MacAddr>,
    /// The machine's UUID as it claims.
    pub uuid: Option<Uuid>,
    /// Transaction id.
    pub xid: u32,
    /// Architecture, from this message or remembered.
    pub arch: Option<Arch>,
    /// Firmware; `None` for who is not booting.
    pub kind: Option<FirmwareKind>,
    /// giaddr.
    pub relay: Option<Ipv4Addr>,
    /// Option 82 circuit id.
    pub circuit: Option<CircuitMark>,
    /// The machine's address: the one given, confirmed, asked for or already its own.
    pub ip: Option<Ipv4Addr>,
    /// The boot file we named, or another server in its offer; empty when none.
    pub file: BootFile,
}

/// What happened in an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DhcpStep {
    /// We sent an OFFER.
    Offered,
    /// We sent an ACK to a REQUEST on 67.
    Acked,
    /// We sent an ACK to an INFORM on 67.
    Informed,
    /// We sent a NAK.
    Naked,
    /// We sent an ACK from 4011.
    BootServerAnswered,
    /// A machine asked for an address that is another server's to give.
    OverheardRequest {
        /// The server it chose, when it says.
        server: Option<Ipv4Addr>,
    },
    /// Another server made an OFFER. The event's file is the one it names.
    OtherServerOffer {
        /// Its option 54.
        server: Ipv4Addr,
        /// Its siaddr.
        next_server: Option<Ipv4Addr>,
        /// It names a boot file.
        has_file: bool,
        /// It calls itself a PXE or HTTP Boot server.
        pxe: bool,
        /// It does so without saying how to go on (option 43 with discovery control or a menu): PXE firmware asks its port
        /// 4011 then.
        sends_to_4011: bool,
        /// It gives an address.
        leases: bool,
    },
    /// Another server gave a machine its address.
    OtherServerAck {
        /// Its option 54.
        server: Ipv4Addr,
    },
    /// A machine gave its address back.
    Released,
    /// A machine found its address in use; nobody gets it for a while.
    Declined,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $word:literal,)+) => {
        /// Why a datagram got no answer.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The word of its counter and log line.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// Too short for a DHCP message.
    Truncated => "truncated",
    /// `op` is neither request nor reply.
    BadOp => "bad-op",
    /// Not DHCP: no magic cookie.
    BadCookie => "bad-cookie",
    /// `hlen` is over 16.
    BadHardwareLen => "bad-hlen",
    /// An option runs past the end.
    OptionOverrun => "option-overrun",
    /// DHCP is switched off.
    Off => "off",
    /// Our own reply, seen on the wire.
    OwnReply => "own-reply",
    /// Another server's reply that tells nothing (a NAK, an answer without option 54).
    OtherReply => "other-reply",
    /// No option 53: BOOTP, or nonsense.
    NoMessageType => "no-message-type",
    /// A message type no client sends.
    OddMessageType => "odd-message-type",
    /// `chaddr` names no machine.
    NoHardwareAddress => "no-hardware-address",
    /// giaddr, ciaddr or the source is no machine's address or port.
    BadAddress => "bad-address",
    /// The interface has no address to answer from.
    NoLocalAddress => "no-local-address",
    /// A message that does not belong to the port it came to.
    WrongPort => "wrong-port",
    /// Not a network boot, and giving addresses is not our business here.
    NotBooting => "not-booting",
    /// RELEASE, DECLINE or INFORM where another server gives the addresses.
    NotOurLease => "not-our-lease",
    /// Addressed to another server (option 54).
    OtherServer => "other-server",
    /// Policy: no answer at all to this machine.
    Silent => "silent",
    /// Policy: this machine is never answered.
    Excluded => "excluded",
    /// Policy: nothing to boot for this machine.
    NoBoot => "no-boot",
    /// Policy named no boot file, or one too long.
    NoBootFile => "no-boot-file",
    /// Left to another PXE server for one retry.
    Deferred => "deferred",
    /// No listed subnet for this request.
    UnknownSubnet => "unknown-subnet",
    /// The subnet is listed without a range, and this machine has no reservation there.
    NoRange => "no-range",
    /// Every address of the pool is taken.
    PoolExhausted => "pool-exhausted",
    /// What is left of the pool is kept for registered machines.
    PoolKept => "pool-kept",
    /// The machine's circuit has as many addresses as one may have.
    CircuitFull => "circuit-full",
    /// One machine says too much in a second.
    RateLimited => "rate-limited",
    /// More DISCOVERs wait than can be answered in time: the newest goes.
    QueueFull => "queue-full",
    /// It waited so long that its machine has asked again, or given up.
    Stale => "stale",
    /// Its lease cannot be stored now, or too many wait to be.
    NotStored => "not-stored",
    /// The address for it is still being asked for.
    Probing => "probing",
    /// A REQUEST that names no address.
    NoRequestedAddress => "no-requested-address",
    /// Asks to keep an address we know nothing of, or may not refuse.
    UnknownLease => "unknown-lease",
    /// The reply does not fit what the client takes.
    ReplyTooBig => "reply-too-big",
}

impl From<Error> for DropReason {
    fn from(error: Error) -> Self {
        match error {
            Error::Truncated { .. } => Self::Truncated,
            Error::BadOp(_) => Self::BadOp,
            Error::BadCookie => Self::BadCookie,
            Error::BadHardwareLen(_) => Self::BadHardwareLen,
            Error::OptionOverrun(_) => Self::OptionOverrun,
        }
    }
}
