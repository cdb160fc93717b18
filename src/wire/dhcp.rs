//! DHCP messages (RFC 2131 §2, RFC 2132, RFC 4578): a borrowed view for reading, a writer for replies and for the
//! firmware machines of `client`.
//!
//! [`Message::parse`] checks lengths once; every accessor after it is total and allocates nothing. Three things are
//! on purpose not done, because no boot firmware does them: option overload (52) is not followed, options split
//! after RFC 3396 are not joined, and neither is ever emitted.
//!
//! ```text
//!   0  op htype hlen hops    12  ciaddr     28  chaddr (16)   108  file (128)
//!   4  xid                   16  yiaddr     44  sname (64)    236  63 82 53 63
//!   8  secs flags            20  siaddr                       240  options: code len body ... 255
//!                            24  giaddr
//! ```

use std::fmt;
use std::net::Ipv4Addr;

use super::addr::{MacAddr, Uuid};
use super::arch::Arch;
use super::reader::Writer;

/// Fixed header plus magic cookie: where options begin.
pub const OPTIONS_OFFSET: usize = 240;
/// BOOTP's legacy minimum; replies are padded to it, since some relays and ROMs drop shorter ones.
pub const LEN_MIN: usize = 300;
/// Longest name the `file` field holds, its NUL not counted.
pub const FILE_LEN_MAX: usize = 127;
/// Bit 15 of `flags`: the client cannot take unicast yet (RFC 2131 §2, figure 2).
pub const FLAG_BROADCAST: u16 = 0x8000;
/// RFC 2131 §3: what opens the option area.
pub const MAGIC_COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// `op` of a message from a client.
pub const OP_REQUEST: u8 = 1;
/// `op` of a message from a server.
pub const OP_REPLY: u8 = 2;

/// Where the hardware address stands.
pub const CHADDR_OFFSET: usize = 28;
const CHADDR_LEN: u8 = 16;
const SNAME_OFFSET: usize = 44;
const FILE_OFFSET: usize = 108;
const COOKIE_OFFSET: usize = 236;

const _: () = assert!(FILE_OFFSET + FILE_LEN_MAX + 1 == COOKIE_OFFSET);
const _: () = assert!(COOKIE_OFFSET + MAGIC_COOKIE.len() == OPTIONS_OFFSET);

/// Option codes by the names the field uses.
pub mod code {
    #![allow(missing_docs, reason = "the names are RFC 2132's and IANA's own")]
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const BOOT_FILE_SIZE: u8 = 13;
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

/// True for codes that an operator may send as he likes. The others are the server's own to say, or have a setting of
/// their own: addresses and terms, the boot, what is echoed, and what must never be sent (13, 52).
pub fn is_site_option(code: u8) -> bool {
    !matches!(
        code,
        code::PAD
            | code::SUBNET_MASK
            | code::ROUTER
            | code::DNS
            | code::BOOT_FILE_SIZE
            | code::DOMAIN_NAME
            | code::BROADCAST_ADDRESS
            | code::VENDOR_SPECIFIC
            | code::REQUESTED_ADDRESS
            ..=code::CLIENT_ID
                | code::TFTP_SERVER_NAME
                | code::BOOT_FILE
                | code::RELAY_AGENT
                | code::CLIENT_ARCHITECTURE
                | code::CLIENT_NDI
                | code::CLIENT_MACHINE_ID
                | code::IPXE
                | code::END
    )
}

/// Sub-options of option 43 inside a `PXEClient` message (PXE 2.1 §2, table of vendor options).
pub mod pxe {
    /// One byte of bits, see [`BOOT_FILE_NOW`].
    pub const DISCOVERY_CONTROL: u8 = 6;
    /// Boot servers: type u16, count u8, addresses.
    pub const BOOT_SERVERS: u8 = 8;
    /// Boot menu: type u16, length u8, text.
    pub const BOOT_MENU: u8 = 9;
    /// Menu prompt: timeout u8, text.
    pub const MENU_PROMPT: u8 = 10;
    /// Boot item: type u16, layer u16; the client's choice, echoed back by the boot server.
    pub const BOOT_ITEM: u8 = 71;
    /// Bit 3 of [`DISCOVERY_CONTROL`]: fetch the boot file named in this packet; no prompt, menu or discovery.
    pub const BOOT_FILE_NOW: u8 = 8;
}

/// Sub-options of option 82 (RFC 3046 and the RFCs named).
pub mod relay {
    /// Agent Circuit ID.
    pub const CIRCUIT_ID: u8 = 1;
    /// Agent Remote ID.
    pub const REMOTE_ID: u8 = 2;
    /// Link Selection (RFC 3527): the subnet to give an address from, 4 bytes.
    pub const LINK_SELECTION: u8 = 5;
    /// Server Identifier Override (RFC 5107): what option 54 must say, 4 bytes.
    pub const SERVER_ID_OVERRIDE: u8 = 11;
    /// Relay Source Port (RFC 8357): the relay listens on the port it sent from.
    pub const SOURCE_PORT: u8 = 19;
}

/// Sub-options of option 175, iPXE's own (`ipxe include/ipxe/features.h`, `include/ipxe/dhcp.h`).
pub mod ipxe {
    /// PXE API extensions; only BIOS builds say so.
    pub const FEATURE_PXE_EXT: u8 = 16;
    /// Can fetch `http://`.
    pub const FEATURE_HTTP: u8 = 19;
    /// Can fetch `https://`.
    pub const FEATURE_HTTPS: u8 = 20;
    /// Can load PXE (BIOS) images.
    pub const FEATURE_PXE: u8 = 33;
    /// Can load EFI images.
    pub const FEATURE_EFI: u8 = 36;
    /// Has `menu`, `item` and `choose`.
    pub const FEATURE_MENU: u8 = 39;
    /// One byte, not 0: do not wait for a proxyDHCP offer.
    pub const NO_PXEDHCP: u8 = 176;
    /// Bus type, vendor and device of the network card.
    pub const BUS_ID: u8 = 177;
    /// Major, minor, patch.
    pub const VERSION: u8 = 235;
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

impl MessageType {
    /// From the byte on the wire.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            other => Self::Unknown(other),
        }
    }

    /// To the byte on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
            Self::Unknown(code) => code,
        }
    }
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { have } => write!(f, "{have} bytes are too few for a DHCP message"),
            Self::BadOp(op) => write!(f, "op {op} is neither request nor reply"),
            Self::BadCookie => f.write_str("no DHCP magic cookie"),
            Self::BadHardwareLen(len) => write!(f, "hardware address of {len} bytes"),
            Self::OptionOverrun(code) => write!(f, "option {code} runs past the end"),
        }
    }
}

impl std::error::Error for Error {}

/// Options that nearly every message is asked for, most of them by name and several times.
const SOUGHT: [u8; 14] = [
    code::VENDOR_SPECIFIC,
    code::REQUESTED_ADDRESS,
    code::MESSAGE_TYPE,
    code::SERVER_ID,
    code::MAX_SIZE,
    code::VENDOR_CLASS,
    code::CLIENT_ID,
    code::BOOT_FILE,
    code::USER_CLASS,
    code::RELAY_AGENT,
    code::CLIENT_ARCHITECTURE,
    code::CLIENT_NDI,
    code::CLIENT_MACHINE_ID,
    code::IPXE,
];

/// By code: its position in [`SOUGHT`] plus one; 0 for the others.
const SOUGHT_AT: [u8; 256] = {
    let mut at = [0; 256];
    let mut index = 0;
    while index < SOUGHT.len() {
        at[SOUGHT[index] as usize] = index as u8 + 1;
        index += 1;
    }
    at
};

/// A checked, borrowed view of one message. Accessors are total.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    header: &'a [u8; OPTIONS_OFFSET],
    options: &'a [u8],
    /// Where the length byte of the first instance of each sought option stands, found once, while lengths are checked.
    /// It comes after a code, so 0 means none; place 0 is everybody else's.
    found: [u16; SOUGHT.len() + 1],
}

impl<'a> Message<'a> {
    /// Checks header, cookie and that every option stays inside the message (a missing END is tolerated).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, options) =
            bytes.split_first_chunk::<OPTIONS_OFFSET>().ok_or(Error::Truncated { have: bytes.len() })?;
        let mut message = Self { header, options, found: [0; SOUGHT.len() + 1] };
        let op = message.op();
        if op != OP_REQUEST && op != OP_REPLY {
            return Err(Error::BadOp(op));
        }
        if message.field::<4>(COOKIE_OFFSET) != MAGIC_COOKIE {
            return Err(Error::BadCookie);
        }
        if message.hlen() > CHADDR_LEN {
            return Err(Error::BadHardwareLen(message.hlen()));
        }
        let mut walk = message.walk();
        while let Some((code, body)) = walk.next() {
            let found = &mut message.found[usize::from(SOUGHT_AT[usize::from(code)])];
            if *found == 0 {
                // More than fits a datagram is walked through every time.
                let at = options.len() - walk.rest.len() - body.len() - 1;
                *found = u16::try_from(at).unwrap_or_default();
            }
        }
        match walk.overrun {
            Some(code) => Err(Error::OptionOverrun(code)),
            None => Ok(message),
        }
    }

    /// 1 request, 2 reply.
    pub fn op(&self) -> u8 {
        self.header[0]
    }

    /// Hardware type; 1 is Ethernet.
    pub fn htype(&self) -> u8 {
        self.header[1]
    }

    /// Bytes of `chaddr` in use, at most 16.
    pub fn hlen(&self) -> u8 {
        self.header[2]
    }

    /// Transaction id.
    pub fn xid(&self) -> u32 {
        u32::from_be_bytes(self.field(4))
    }

    /// Seconds the client says it has been trying (iPXE: not seconds at all).
    pub fn secs(&self) -> u16 {
        u16::from_be_bytes(self.field(8))
    }

    /// Bit 15 asks for a broadcast reply.
    pub fn flags(&self) -> u16 {
        u16::from_be_bytes(self.field(10))
    }

    /// True when the client asks for a broadcast reply.
    pub fn wants_broadcast(&self) -> bool {
        self.flags() & FLAG_BROADCAST != 0
    }

    /// Relay hops.
    pub fn hops(&self) -> u8 {
        self.header[3]
    }

    /// Client's configured address.
    pub fn ciaddr(&self) -> Ipv4Addr {
        self.field::<4>(12).into()
    }

    /// "Your" address.
    pub fn yiaddr(&self) -> Ipv4Addr {
        self.field::<4>(16).into()
    }

    /// Next server.
    pub fn siaddr(&self) -> Ipv4Addr {
        self.field::<4>(20).into()
    }

    /// Relay agent.
    pub fn giaddr(&self) -> Ipv4Addr {
        self.field::<4>(24).into()
    }

    /// All 16 bytes of `chaddr`.
    pub fn chaddr(&self) -> &'a [u8] {
        &self.header[CHADDR_OFFSET..SNAME_OFFSET]
    }

    /// `chaddr` as an Ethernet address: htype 1 and hlen 6, not zero, not a group address.
    pub fn mac(&self) -> Option<MacAddr> {
        if self.htype() != 1 || self.hlen() != 6 {
            return None;
        }
        let mac = MacAddr(self.field(CHADDR_OFFSET));
        (!mac.is_zero() && !mac.is_group()).then_some(mac)
    }

    /// `sname` up to its NUL.
    pub fn sname(&self) -> &'a [u8] {
        until_nul(&self.header[SNAME_OFFSET..FILE_OFFSET])
    }

    /// `file` up to its NUL.
    pub fn file(&self) -> &'a [u8] {
        until_nul(&self.header[FILE_OFFSET..COOKIE_OFFSET])
    }

    /// First instance of an option's body.
    pub fn option(&self, code: u8) -> Option<&'a [u8]> {
        let sought = usize::from(SOUGHT_AT[usize::from(code)]);
        if sought == 0 || self.options.len() > usize::from(u16::MAX) {
            return self.walk().find_map(|(found, body)| (found == code).then_some(body));
        }
        match usize::from(self.found[sought]) {
            0 => None,
            at => {
                let (len, rest) = self.options.get(at..)?.split_first()?;
                rest.get(..usize::from(*len))
            }
        }
    }

    /// First instance of an option, when its body is exactly `N` bytes.
    pub fn option_array<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.option(code)?.try_into().ok()
    }

    /// First instance of an option, when its body is one IPv4 address.
    pub fn option_ipv4(&self, code: u8) -> Option<Ipv4Addr> {
        self.option_array::<4>(code).map(Ipv4Addr::from)
    }

    /// Every option in order, PAD and END left out.
    pub fn options(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        self.walk()
    }

    /// Option 53.
    pub fn message_type(&self) -> Option<MessageType> {
        self.option_array::<1>(code::MESSAGE_TYPE).map(|[code]| MessageType::from_code(code))
    }

    /// Option 54.
    pub fn server_id(&self) -> Option<Ipv4Addr> {
        self.option_ipv4(code::SERVER_ID)
    }

    /// Option 67 up to a NUL, if any.
    pub fn boot_file_option(&self) -> Option<&'a [u8]> {
        self.option(code::BOOT_FILE).map(until_nul)
    }

    /// First architecture of option 93.
    pub fn arch(&self) -> Option<Arch> {
        self.arches().next()
    }

    /// Every architecture of option 93, in the client's order of preference.
    pub fn arches(&self) -> impl Iterator<Item = Arch> + use<'a> {
        let body = self.option(code::CLIENT_ARCHITECTURE).unwrap_or_default();
        body.chunks_exact(2).map(|pair| Arch(u16::from_be_bytes([pair[0], pair[1]])))
    }

    /// Option 97 (type 0) as a UUID in printing order.
    pub fn uuid(&self) -> Option<Uuid> {
        let [0, smbios @ ..] = self.option_array::<17>(code::CLIENT_MACHINE_ID)? else {
            return None;
        };
        Some(Uuid::from_smbios(smbios))
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        // Every caller's offset is a constant inside the fixed header, so the slice always has N bytes.
        self.header[offset..].first_chunk().copied().unwrap_or([0; N])
    }

    fn walk(&self) -> Walk<'a> {
        Walk { rest: self.options, padded: true, overrun: None }
    }
}

impl fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("op", &self.op())
            .field("type", &self.message_type())
            .field("xid", &format_args!("{:#010x}", self.xid()))
            .field("mac", &self.mac())
            .field("ciaddr", &self.ciaddr())
            .field("yiaddr", &self.yiaddr())
            .field("siaddr", &self.siaddr())
            .field("giaddr", &self.giaddr())
            .finish_non_exhaustive()
    }
}

/// `bytes` up to the first NUL.
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Code-length-body records; where they stop early, `overrun` says at which code.
#[derive(Clone, Copy, Debug)]
struct Walk<'a> {
    rest: &'a [u8],
    /// 0 is PAD and 255 is END, instead of ordinary codes.
    padded: bool,
    overrun: Option<u8>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&code, rest) = self.rest.split_first()?;
            if self.padded && code == code::PAD {
                self.rest = rest;
                continue;
            }
            if self.padded && code == code::END {
                self.rest = &[];
                return None;
            }
            let record = rest.split_first().and_then(|(&len, rest)| rest.split_at_checked(usize::from(len)));
            let Some((body, rest)) = record else {
                self.rest = &[];
                self.overrun = Some(code);
                return None;
            };
            self.rest = rest;
            return Some((code, body));
        }
    }
}

/// The sub-options inside an option's body: code, length, body. Stops at the first that overruns.
#[derive(Clone, Copy, Debug)]
pub struct SubOptions<'a> {
    walk: Walk<'a>,
}

impl<'a> SubOptions<'a> {
    /// Options 43 (RFC 2132 §8.4) and 175: 0 pads, 255 ends.
    pub fn encapsulated(body: &'a [u8]) -> Self {
        Self { walk: Walk { rest: body, padded: true, overrun: None } }
    }

    /// Option 82 (RFC 3046 §2.0): every code is a code, there is no pad and no end.
    pub fn relay_agent(body: &'a [u8]) -> Self {
        Self { walk: Walk { rest: body, padded: false, overrun: None } }
    }

    /// First instance of a sub-option's body.
    pub fn first(mut self, code: u8) -> Option<&'a [u8]> {
        self.find_map(|(found, body)| (found == code).then_some(body))
    }
}

impl<'a> Iterator for SubOptions<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.walk.next()
    }
}

/// The fixed header of a message about to be emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Header {
    /// The header of an answer to `request` (RFC 2131 §4.3.1, table 3): xid, flags, giaddr and hardware address are
    /// the request's, hops and secs 0, every other address unspecified.
    pub fn reply_to(request: &Message<'_>) -> Self {
        Self {
            op: OP_REPLY,
            hops: 0,
            xid: request.xid(),
            secs: 0,
            flags: request.flags(),
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: request.giaddr(),
            htype: request.htype(),
            hlen: request.hlen(),
            chaddr: request.field(CHADDR_OFFSET),
        }
    }

    /// The header of a request from an Ethernet client that has no address yet.
    pub fn request_from(mac: MacAddr, xid: u32) -> Self {
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&mac.0);
        Self {
            op: OP_REQUEST,
            hops: 0,
            xid,
            secs: 0,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            htype: 1,
            hlen: 6,
            chaddr,
        }
    }
}

/// Emits one message into a caller's buffer: header, options in the order they are put, END, padding to
/// [`LEN_MIN`].
#[derive(Debug)]
pub struct Emitter<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl<'b> Emitter<'b> {
    /// Starts a message; `buffer` is the size limit. `None` when it is shorter than [`LEN_MIN`] or `hlen` is over 16.
    pub fn new(buffer: &'b mut [u8], header: &Header) -> Option<Self> {
        if buffer.len() < LEN_MIN || header.hlen > CHADDR_LEN {
            return None;
        }
        let mut fixed = Writer::new(&mut *buffer);
        fixed.put(&[header.op, header.htype, header.hlen, header.hops])?;
        fixed.u32_be(header.xid)?;
        fixed.u16_be(header.secs)?;
        fixed.u16_be(header.flags)?;
        for address in [header.ciaddr, header.yiaddr, header.siaddr, header.giaddr] {
            fixed.put(&address.octets())?;
        }
        fixed.put(&header.chaddr)?;
        fixed.zeros(COOKIE_OFFSET - SNAME_OFFSET)?;
        fixed.put(&MAGIC_COOKIE)?;
        let len = fixed.len();
        Some(Self { buffer, len })
    }

    /// Fills the `file` field (at most 127 bytes plus NUL).
    pub fn file(&mut self, name: &[u8]) -> Option<()> {
        if name.len() > FILE_LEN_MAX {
            return None;
        }
        let field = self.buffer.get_mut(FILE_OFFSET..COOKIE_OFFSET)?;
        field.fill(0);
        field.get_mut(..name.len())?.copy_from_slice(name);
        Some(())
    }

    /// Bytes of options that still fit, END already taken off.
    pub fn room(&self) -> usize {
        self.buffer.len() - self.len - 1
    }

    /// Appends an option; a body over 255 bytes or without room writes nothing and is `None`.
    pub fn option(&mut self, code: u8, body: &[u8]) -> Option<()> {
        self.option_parts(code, &[body])
    }

    /// Appends an option whose body is the concatenation of `parts`; as [`Emitter::option`] otherwise.
    pub fn option_parts(&mut self, code: u8, parts: &[&[u8]]) -> Option<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len_byte = u8::try_from(len).ok()?;
        // The room keeps one byte for END, so `finish` cannot fail.
        if len + 2 > self.room() {
            return None;
        }
        let mut option = Writer::new(self.buffer.get_mut(self.len..)?);
        option.put(&[code, len_byte])?;
        for part in parts {
            option.put(part)?;
        }
        self.len += option.len();
        Some(())
    }

    /// END, padding, total length.
    pub fn finish(self) -> Option<usize> {
        *self.buffer.get_mut(self.len)? = code::END;
        let end = self.len + 1;
        let total = end.max(LEN_MIN);
        self.buffer.get_mut(end..total)?.fill(0);
        Some(total)
    }
}

/// Drives the parser and every accessor over arbitrary bytes, and re-emits what parsed: for fuzz targets and the
/// mutation tests. Panics only when an invariant of this module is broken.
pub fn fuzz_message(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else { return };
    let _ = format_args!("{message:?}").to_string();
    let mut buffer = [0; 1500];
    let Some(mut emitter) = Emitter::new(&mut buffer, &Header::reply_to(&message)) else { return };
    let file = message.file();
    let took_file = emitter.file(file).is_some();
    let mut kept = 0;
    for (code, body) in message.options() {
        SubOptions::encapsulated(body).for_each(drop);
        SubOptions::relay_agent(body).for_each(drop);
        if emitter.option(code, body).is_none() {
            break;
        }
        kept += 1;
    }
    let len = emitter.finish().expect("the emitter keeps room for END");
    let again = Message::parse(&buffer[..len]).expect("what was emitted parses");
    assert_eq!(again.xid(), message.xid());
    assert_eq!(again.chaddr(), message.chaddr());
    assert_eq!(again.mac(), message.mac());
    // A `file` field without a NUL holds 128 bytes, one more than a reply may.
    assert_eq!(again.file(), if took_file { file } else { &[] });
    assert_eq!(took_file, file.len() <= FILE_LEN_MAX);
    assert!(again.options().eq(message.options().take(kept)));
}

#[cfg(test)]
mod tests;
