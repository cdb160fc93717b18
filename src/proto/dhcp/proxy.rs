//! The half that gives no addresses: proxy offers on 67, the boot server on 4011, and what is overheard of other
//! servers.

use std::net::Ipv4Addr;
use std::time::Instant;

use super::Server;
use super::asker::{Asker, identities, local_address, specified};
use super::memory::Rival;
use super::policy::{Answer, BootFile, BootPolicy};
use super::reply::{Boot, Reply, len_max};
use super::settings::Mode;
use super::verdict::{DhcpEvent, DhcpStep, DropReason, Input, Output, Verdict};
use crate::proto::firmware::{Firmware, FirmwareKind, HTTP_CLIENT, PXE_CLIENT};
use crate::wire::dhcp::{Message, MessageType, SubOptions, code};

impl Server {
    /// Proxy mode, port 67: boot firmware's DISCOVERs are answered, everything else is another server's business.
    pub(super) fn handle_proxy(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        match asker.kind {
            MessageType::Discover => {
                let firmware = asker.firmware.ok_or(DropReason::NotBooting)?;
                let (answer, file) = self.resolve(now, asker, &firmware, policy)?;
                if answer == Answer::BootUnclaimed
                    && let Some(mac) = asker.mac
                    && self.memory.defers(
                        asker.input.interface.index,
                        mac,
                        asker.message.xid(),
                        firmware.ipxe().is_some(),
                        now,
                    )
                {
                    return Err(DropReason::Deferred);
                }
                self.boot_reply(asker, &firmware, file.ok_or(DropReason::NoBoot)?, DhcpStep::Offered, out)
            }
            MessageType::Request => {
                let server = asker.message.server_id();
                let ip = asker.message.option_ipv4(code::REQUESTED_ADDRESS).and_then(specified);
                let what = DhcpStep::OverheardRequest { server };
                Ok(Verdict::Heard(asker.event(what, ip.or(asker.ciaddr()), BootFile::new())))
            }
            _ => Err(DropReason::NotOurLease),
        }
    }

    /// Port 4011, in both modes: the client has its address and asks for boot data alone.
    pub(super) fn handle_boot_server(
        &mut self,
        now: Instant,
        asker: &Asker<'_>,
        policy: &mut dyn BootPolicy,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        if !matches!(asker.kind, MessageType::Request | MessageType::Inform) {
            return Err(DropReason::WrongPort);
        }
        let firmware = asker.firmware.ok_or(DropReason::NotBooting)?;
        if firmware.kind == FirmwareKind::HttpBoot {
            return Err(DropReason::WrongPort);
        }
        if asker.message.server_id().is_some_and(|server_id| !asker.is_us(server_id)) {
            return Err(DropReason::OtherServer);
        }
        if asker.input.src.ip().is_unspecified() {
            return Err(DropReason::BadAddress);
        }
        let (_, file) = self.resolve(now, asker, &firmware, policy)?;
        let file = file.ok_or(DropReason::NoBoot)?;
        self.boot_reply(asker, &firmware, file, DhcpStep::BootServerAnswered, out)
    }

    /// A reply with boot data and nothing else.
    fn boot_reply(
        &self,
        asker: &Asker<'_>,
        firmware: &Firmware,
        file: BootFile,
        what: DhcpStep,
        out: &mut [u8],
    ) -> Result<Verdict, DropReason> {
        let boot_server = what == DhcpStep::BootServerAnswered;
        let kind = if boot_server { MessageType::Ack } else { MessageType::Offer };
        let reply = Reply {
            kind,
            server_id: asker.server_id,
            // RFC 2131 table 3: an OFFER's ciaddr is 0, an ACK's is the request's.
            ciaddr: if boot_server { asker.message.ciaddr() } else { Ipv4Addr::UNSPECIFIED },
            yiaddr: Ipv4Addr::UNSPECIFIED,
            flags: asker.message.flags(),
            subnet: None,
            lease: None,
            boot: Some(Boot {
                firmware,
                file: &file,
                server: asker.server,
                no_proxy: false,
                boot_item: boot_server,
            }),
            message: None,
        };
        let output = send(asker, &reply, false, 0, out)?;
        Ok(Verdict::Reply(output, asker.event(what, asker.ciaddr(), file)))
    }

    /// A message with `op` 2: some server's answer to somebody.
    pub(super) fn overhear(
        &mut self,
        now: Instant,
        input: &Input<'_>,
        message: &Message<'_>,
    ) -> Result<Verdict, DropReason> {
        let server = message.server_id().ok_or(DropReason::OtherReply)?;
        let yiaddr = specified(message.yiaddr());
        let ours = [local_address(input), specified(input.interface.addr)].contains(&Some(server));
        // Beside a DHCP server on this very host both have the same address, but a proxy never gives one.
        if ours && (self.settings.mode != Mode::Proxy || yiaddr.is_none()) {
            return Err(DropReason::OwnReply);
        }
        let (mac, uuid) = identities(input, message).ok_or(DropReason::NoHardwareAddress)?;
        let class = message.option(code::VENDOR_CLASS).unwrap_or_default();
        let pxe = class.starts_with(PXE_CLIENT) || class.starts_with(HTTP_CLIENT);
        let has_file =
            !message.file().is_empty() || message.boot_file_option().is_some_and(|file| !file.is_empty());
        let mut file = BootFile::new();
        let what = match message.message_type() {
            Some(MessageType::Offer) => {
                if pxe || has_file {
                    let what = Rival {
                        server,
                        pxe,
                        has_file,
                        has_vendor_options: message.option(code::VENDOR_SPECIFIC).is_some(),
                        gives_addresses: yiaddr.is_some(),
                    };
                    self.memory.note_rival(input.interface.index, now, what);
                }
                file = named_file(message);
                DhcpStep::OtherServerOffer {
                    server,
                    next_server: specified(message.siaddr()),
                    has_file,
                    pxe,
                    sends_to_4011: class.starts_with(PXE_CLIENT) && !says_how_to_go_on(message),
                    leases: yiaddr.is_some(),
                }
            }
            Some(MessageType::Ack) => DhcpStep::OtherServerAck { server },
            _ => return Err(DropReason::OtherReply),
        };
        Ok(Verdict::Heard(DhcpEvent {
            what,
            mac,
            uuid,
            xid: message.xid(),
            arch: mac.and_then(|mac| self.memory.arch(mac)),
            kind: None,
            relay: specified(message.giaddr()),
            circuit: None,
            ip: yiaddr.or_else(|| specified(message.ciaddr())),
            file,
        }))
    }
}

/// The boot file of another server's offer, as PXE firmware reads it: option 67, else `file`.
fn named_file(message: &Message<'_>) -> BootFile {
    use std::fmt::Write;
    let raw = message.boot_file_option().filter(|file| !file.is_empty()).unwrap_or_else(|| message.file());
    let text = String::from_utf8_lossy(raw);
    let mut file = BootFile::new();
    // A name too long, or with a NUL in it, is kept as none.
    let _ = file.write_str(text.trim_end_matches('\0'));
    file
}

/// Whether option 43 holds one of the discovery options 6 to 10 (PXE 2.1; PxeBcDhcp4.c looks for the same).
fn says_how_to_go_on(message: &Message<'_>) -> bool {
    let body = message.option(code::VENDOR_SPECIFIC).unwrap_or_default();
    SubOptions::encapsulated(body).any(|(sub, _)| (6..=10).contains(&sub))
}

/// Emits a reply and addresses it.
pub(super) fn send(
    asker: &Asker<'_>,
    reply: &Reply<'_>,
    heard_nothing: bool,
    stored: u64,
    out: &mut [u8],
) -> Result<Output, DropReason> {
    let len_max = len_max(&asker.message, asker.input.interface.mtu);
    let len = reply.emit(&asker.message, out, len_max).ok_or(DropReason::ReplyTooBig)?;
    let to = asker.destination(reply.kind, reply.yiaddr, heard_nothing);
    Ok(Output { to, from: asker.local, port: asker.input.port, len, stored })
}
