//! Replies as bytes: which options, in which order, and which go first when the client's limit is small.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::policy::BootFile;
use super::settings::Subnet;
use crate::proto::firmware::Firmware;
use crate::wire::dhcp::{Emitter, Header, Message, MessageType, SubOptions, code, ipxe, pxe};

/// IPv4 and UDP headers.
const IP_UDP_LEN: usize = 28;
/// What a client that says nothing takes (RFC 2131 §2), IP header included.
const IP_LEN_DEFAULT: usize = 576;
/// What goes over every Ethernet in one piece; nothing may rely on IP fragments before an OS runs.
const IP_LEN_MAX: usize = 1500;

const _: () = assert!(IP_LEN_MAX - IP_UDP_LEN == 1472, "EDK2 ignores offers longer than 1472 bytes");

/// What to boot, and from where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Boot<'a> {
    pub(super) firmware: &'a Firmware,
    pub(super) file: &'a BootFile,
    pub(super) server: Ipv4Addr,
    /// Tell iPXE not to wait for a proxy's offer.
    pub(super) no_proxy: bool,
    /// Echo the boot item (43.71) the client chose.
    pub(super) boot_item: bool,
}

/// One reply, but for what is echoed from its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) kind: MessageType,
    /// Option 54.
    pub(super) server_id: Ipv4Addr,
    pub(super) ciaddr: Ipv4Addr,
    pub(super) yiaddr: Ipv4Addr,
    pub(super) flags: u16,
    /// Network options, when this reply configures an address.
    pub(super) subnet: Option<&'a Subnet>,
    /// The term of the lease, when there is one.
    pub(super) lease: Option<Duration>,
    pub(super) boot: Option<Boot<'a>>,
    /// Option 56.
    pub(super) message: Option<&'a str>,
}

/// The longest reply this request's client takes in one piece: option 57 (IP length) or 576, at most 1500 and the
/// interface's MTU, less 28. What a relay added it takes out again before the client sees it (RFC 3046 §2.1).
pub(super) fn len_max(request: &Message<'_>, mtu: u32) -> usize {
    let asked = request.option_array(code::MAX_SIZE).map(u16::from_be_bytes).map(usize::from);
    // RFC 2132 §9.10: less than 576 is not a legal value.
    let taken = asked.unwrap_or(IP_LEN_DEFAULT).max(IP_LEN_DEFAULT);
    let mtu = usize::try_from(mtu).unwrap_or(IP_LEN_MAX).max(IP_LEN_DEFAULT);
    let relayed = !request.giaddr().is_unspecified();
    let added = request.option(code::RELAY_AGENT).filter(|_| relayed).map_or(0, |body| body.len() + 2);
    (taken + added).min(mtu).min(IP_LEN_MAX) - IP_UDP_LEN
}

impl Reply<'_> {
    /// Writes the reply into `out`, at most `len_max` bytes, and returns its length. `None` when what must be in it
    /// does not fit.
    ///
    /// What may be left out stands behind what may not, the most useful first: nothing after it is left out instead.
    pub(super) fn emit(&self, request: &Message<'_>, out: &mut [u8], len_max: usize) -> Option<usize> {
        let limit = out.len().min(len_max);
        let header = Header {
            ciaddr: self.ciaddr,
            yiaddr: self.yiaddr,
            siaddr: self.boot.map_or(Ipv4Addr::UNSPECIFIED, |boot| boot.server),
            flags: self.flags,
            ..Header::reply_to(request)
        };
        let mut emitter = Emitter::new(out.get_mut(..limit)?, &header)?;
        emitter.option(code::MESSAGE_TYPE, &[self.kind.code()])?;
        emitter.option(code::SERVER_ID, &self.server_id.octets())?;
        if let Some(lease) = self.lease {
            emitter.option(code::LEASE_TIME, &secs(lease).to_be_bytes())?;
        }
        if let Some(subnet) = self.subnet {
            emitter.option(code::SUBNET_MASK, &subnet.network.mask().octets())?;
        }
        if let Some(boot) = &self.boot {
            boot.emit(request, &mut emitter)?;
        }

        // RFC 3046 §2.2: option 82 goes back unchanged and last, so its room is not for others.
        let relay_agent = request.option(code::RELAY_AGENT);
        let kept = relay_agent.map_or(0, |body| body.len() + 2);
        let mut optional = |code, body: &[u8]| {
            if body.len() + 2 + kept <= emitter.room() {
                emitter.option(code, body);
            }
        };
        if let Some(router) = self.subnet.and_then(|subnet| subnet.router) {
            optional(code::ROUTER, &router.octets());
        }
        for echoed in [code::CLIENT_MACHINE_ID, code::CLIENT_ID] {
            if let Some(body) = request.option(echoed) {
                optional(echoed, body);
            }
        }
        if let Some(boot) = &self.boot {
            let (text, len) = dotted(boot.server);
            optional(code::TFTP_SERVER_NAME, &text[..len]);
            if boot.no_proxy && boot.firmware.ipxe().is_some() {
                optional(code::IPXE, &[ipxe::NO_PXEDHCP, 1, 1]);
            }
        }
        if let Some(subnet) = self.subnet {
            let mut dns = [0; 4 * DNS_COUNT_MAX];
            let mut len = 0;
            for (place, server) in dns.chunks_exact_mut(4).zip(&subnet.dns) {
                place.copy_from_slice(&server.octets());
                len += 4;
            }
            if len > 0 {
                optional(code::DNS, &dns[..len]);
            }
            if let Some(lease) = self.lease {
                // RFC 2131 §4.4.5: T1 is a half, T2 seven eighths of the term.
                optional(code::RENEWAL_TIME, &secs(lease / 2).to_be_bytes());
                optional(code::REBINDING_TIME, &secs(lease / 8 * 7).to_be_bytes());
            }
            if subnet.network.prefix() < 31 {
                optional(code::BROADCAST_ADDRESS, &subnet.network.broadcast().octets());
            }
            if let Some(domain) = subnet.domain.as_deref().filter(|domain| (1..=255).contains(&domain.len()))
            {
                optional(code::DOMAIN_NAME, domain.as_bytes());
            }
        }
        for site in self.subnet.iter().flat_map(|subnet| &subnet.options) {
            optional(site.code, &site.body);
        }
        if let Some(message) = self.message {
            optional(code::MESSAGE, message.as_bytes());
        }
        if let Some(body) = relay_agent {
            emitter.option(code::RELAY_AGENT, body)?;
        }
        emitter.finish()
    }
}

/// An address as text: what `Display` writes, at a tenth of the time.
fn dotted(ip: Ipv4Addr) -> ([u8; 15], usize) {
    let (mut text, mut len) = ([0; 15], 0);
    for (place, octet) in ip.octets().into_iter().enumerate() {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let skipped = if octet < 10 { 2 } else { usize::from(octet < 100) };
        if place > 0 {
            text[len] = b'.';
            len += 1;
        }
        for digit in &digits[skipped..] {
            text[len] = b'0' + digit;
            len += 1;
        }
    }
    (text, len)
}

/// Resolvers told at most; the field's clients use three.
const DNS_COUNT_MAX: usize = 8;

fn secs(time: Duration) -> u32 {
    // All ones means "for ever" (RFC 2131 §3.3), which we never promise.
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).min(u32::MAX - 1)
}

impl Boot<'_> {
    /// The options a boot cannot do without, and `file`.
    fn emit(&self, request: &Message<'_>, emitter: &mut Emitter<'_>) -> Option<()> {
        let class = self.firmware.vendor_class();
        emitter.option(code::VENDOR_CLASS, class)?;
        // Option 43 belongs to the class: these codes mean something to PXE clients only.
        if class == crate::proto::firmware::PXE_CLIENT {
            const DISCOVERY_CONTROL: [u8; 3] = [pxe::DISCOVERY_CONTROL, 1, pxe::BOOT_FILE_NOW];
            let item = request
                .option(code::VENDOR_SPECIFIC)
                .filter(|_| self.boot_item)
                .and_then(|body| SubOptions::encapsulated(body).first(pxe::BOOT_ITEM))
                .and_then(|item| <[u8; 4]>::try_from(item).ok());
            match item {
                Some(item) => emitter.option_parts(
                    code::VENDOR_SPECIFIC,
                    &[&DISCOVERY_CONTROL, &[pxe::BOOT_ITEM, 4], &item, &[code::END]],
                )?,
                None => emitter.option_parts(code::VENDOR_SPECIFIC, &[&DISCOVERY_CONTROL, &[code::END]])?,
            }
        }
        emitter.option_parts(code::BOOT_FILE, &[self.file.as_bytes(), &[0]])?;
        emitter.file(self.file.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_the_standard_library_writes_it() {
        for ip in (0..=u32::MAX).step_by(77_777_777).chain([0, 1, u32::MAX, 0x0a0a_6464, 0x0963_64ff]) {
            let ip = Ipv4Addr::from_bits(ip);
            let (text, len) = dotted(ip);
            assert_eq!(std::str::from_utf8(&text[..len]).unwrap(), ip.to_string());
        }
    }
}
