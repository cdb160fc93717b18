//! DHCP messages (RFC 2131 §2, RFC 2132, RFC 4578): a borrowed view for reading, a writer for replies and for the
//! firmware machines of `client`. (Being filled in; the signatures are the contract.)

use std::net::Ipv4Addr;

use super::addr::{MacAddr, Uuid};
use super::arch::Arch;

/// Fixed header plus magic cookie: where options begin.
pub const OPTIONS_OFFSET: usize = 240;
/// BOOTP's legacy minimum; replies are padded to it.
pub const LEN_MIN: usize = 300;

/// Option codes by the names the field uses.
pub mod code {
    #![allow(missing_docs, reason = "the names are RFC 2132's and IANA's own")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const ROOT_PATH: u8 = 17;
    pub const BROADCAST_ADDRESS: u8 = 28;
    pub const VENDOR_SPECIFIC: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MAX_SIZE: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER_NAME: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const USER_CLASS: u8 = 77;
    pub const RELAY_AGENT: u8 = 82;
    pub const CLIENT_ARCHITECTURE: u8 = 93;
    pub const CLIENT_NDI: u8 = 94;
    pub const CLIENT_MACHINE_ID: u8 = 97;
    pub const IPXE: u8 = 175;
    pub const END: u8 = 255;
}

/// Option 53.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "RFC 2132 §9.6 names them")]
pub enum MessageType {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
    Unknown(u8),
}

/// Why bytes are not a DHCP message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Shorter than the fixed header and cookie.
    Truncated {
        /// Bytes received.
        have: usize,
    },
    /// `op` is neither 1 nor 2.
    BadOp(u8),
    /// The magic cookie is not 63 82 53 63.
    BadCookie,
    /// `hlen` is more than 16.
    BadHardwareLen(u8),
    /// An option's length runs past the end of the message.
    OptionOverrun(u8),
}

/// A checked, borrowed view of one message. Accessors are total.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Checks header, cookie and that every option stays inside the message (a missing END is tolerated).
    pub fn parse(_bytes: &'a [u8]) -> Result<Self, Error> {
        unimplemented!()
    }
    /// 1 request, 2 reply.
    pub fn op(&self) -> u8 {
        self.bytes[0]
    }
    /// Transaction id.
    pub fn xid(&self) -> u32 {
        unimplemented!()
    }
    /// Seconds the client says it has been trying (iPXE: not seconds at all).
    pub fn secs(&self) -> u16 {
        unimplemented!()
    }
    /// Bit 15 asks for a broadcast reply.
    pub fn flags(&self) -> u16 {
        unimplemented!()
    }
    /// Relay hops.
    pub fn hops(&self) -> u8 {
        unimplemented!()
    }
    /// Client's configured address.
    pub fn ciaddr(&self) -> Ipv4Addr {
        unimplemented!()
    }
    /// "Your" address.
    pub fn yiaddr(&self) -> Ipv4Addr {
        unimplemented!()
    }
    /// Next server.
    pub fn siaddr(&self) -> Ipv4Addr {
        unimplemented!()
    }
    /// Relay agent.
    pub fn giaddr(&self) -> Ipv4Addr {
        unimplemented!()
    }
    /// All 16 bytes of `chaddr`.
    pub fn chaddr(&self) -> &'a [u8] {
        unimplemented!()
    }
    /// `chaddr` as an Ethernet address: htype 1 and hlen 6, not zero, not a group address.
    pub fn mac(&self) -> Option<MacAddr> {
        unimplemented!()
    }
    /// `file` up to its NUL.
    pub fn file(&self) -> &'a [u8] {
        unimplemented!()
    }
    /// First instance of an option's body.
    pub fn option(&self, _code: u8) -> Option<&'a [u8]> {
        unimplemented!()
    }
    /// Every option in order, PAD and END left out.
    pub fn options(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        std::iter::empty()
    }
    /// Option 53.
    pub fn message_type(&self) -> Option<MessageType> {
        unimplemented!()
    }
    /// First architecture of option 93.
    pub fn arch(&self) -> Option<Arch> {
        unimplemented!()
    }
    /// Option 97 (type 0) as a UUID in printing order.
    pub fn uuid(&self) -> Option<Uuid> {
        unimplemented!()
    }
}

/// The fixed header of a message about to be emitted.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "RFC 2131 §2 names them")]
pub struct Header {
    pub op: u8,
    pub hops: u8,
    pub xid: u32,
    pub secs: u16,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub htype: u8,
    pub hlen: u8,
    pub chaddr: [u8; 16],
}

/// Emits one message into a caller's buffer: header, options in the order they are put, END, padding to
/// [`LEN_MIN`].
#[derive(Debug)]
pub struct Emitter<'b> {
    buffer: &'b mut [u8],
}

impl<'b> Emitter<'b> {
    /// Starts a message; `buffer` is the size limit.
    pub fn new(_buffer: &'b mut [u8], _header: &Header) -> Option<Self> {
        unimplemented!()
    }
    /// Fills the `file` field (at most 127 bytes plus NUL).
    pub fn file(&mut self, _name: &[u8]) -> Option<()> {
        unimplemented!()
    }
    /// Appends an option; a body over 255 bytes or without room writes nothing and is `None`.
    pub fn option(&mut self, _code: u8, _body: &[u8]) -> Option<()> {
        unimplemented!()
    }
    /// END, padding, total length.
    pub fn finish(self) -> Option<usize> {
        let _ = self.buffer;
        unimplemented!()
    }
}
