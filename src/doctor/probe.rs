//! Single questions to the server, beside the boot: does a block of this size arrive, does port 4011 answer.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::link::{Carrier, LATE_MAX};
use super::packet::Heard;
use crate::wire::dhcp::{Emitter, Header, Message, MessageType, code};
use crate::wire::tftp::{ErrorCode, Mode, Options, Packet, emit_ack, emit_error, emit_rrq};
use crate::wire::{MacAddr, Uuid};

/// How long an answer to one packet may take, and how often the packet is sent.
const PATIENCE: Duration = Duration::from_millis(400);
const TRIES: u32 = 3;

/// What came of asking for a file with one block size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Block {
    /// The first block arrived whole.
    Arrived,
    /// The request was answered, the block did not come.
    Lost,
    /// The server grants no block of that size.
    Smaller(u16),
    /// The request itself got no answer.
    Silent,
    /// ICMP said that there is nobody.
    Refused,
    /// An error of the server's.
    Error(String),
}

/// Asks for `name` with blocks of `blksize` bytes and waits for the first one; the transfer is then broken off.
pub(super) fn block(
    carrier: &mut dyn Carrier,
    server: SocketAddrV4,
    name: &str,
    blksize: u16,
    from_port: u16,
) -> Block {
    let mut request = vec![0; 512];
    let options = Options { blksize: Some(blksize), ..Options::default() };
    let Some(len) = emit_rrq(&mut request, name.as_bytes(), Mode::Octet, &options) else {
        return Block::Error("the name is too long for a request".into());
    };
    request.truncate(len);
    let mut peer = None;
    let mut granted = blksize;
    let mut fragments = 0;
    let mut done = None;
    for _ in 0..TRIES {
        match peer {
            None => carrier.send(from_port, server, &request),
            Some(peer) => acknowledge(carrier, from_port, peer),
        }
        let until = Instant::now() + PATIENCE;
        let mut late = 0;
        while done.is_none() && late < LATE_MAX {
            let left = until.saturating_duration_since(Instant::now());
            late += usize::from(left.is_zero());
            match carrier.hear(left) {
                Some(Heard::Udp { from, to, payload }) if to.port() == from_port => {
                    match Packet::parse(&payload) {
                        Ok(Packet::Oack(options)) => {
                            granted = options.blksize.unwrap_or(512);
                            if peer.replace(from).is_none() {
                                acknowledge(carrier, from_port, from);
                            }
                        }
                        Ok(Packet::Data(_, bytes)) => {
                            peer = Some(from);
                            let whole = bytes.len() >= usize::from(granted.min(blksize));
                            done = Some(if whole || fragments == 0 { Block::Arrived } else { Block::Lost });
                        }
                        Ok(Packet::Error(_, message)) => {
                            return Block::Error(String::from_utf8_lossy(message).into_owned());
                        }
                        _ => {}
                    }
                }
                // Nobody puts fragments together here: that their bytes all came is what is asked.
                Some(Heard::Fragment { from, len, .. }) if from == *server.ip() => {
                    fragments += len;
                    if fragments >= usize::from(granted) + 12 {
                        done = Some(Block::Arrived);
                    }
                }
                Some(Heard::Unreachable { to, .. }) if to == server => return Block::Refused,
                Some(_) => {}
                None => break,
            }
        }
        if done.is_some() {
            break;
        }
        fragments = 0;
    }
    if let Some(peer) = peer {
        let mut packet = [0; 64];
        let len = emit_error(&mut packet, ErrorCode::NotDefined, "that was all").unwrap_or(0);
        carrier.send(from_port, peer, packet.get(..len).unwrap_or_default());
    }
    match done {
        Some(Block::Arrived) if granted < blksize => Block::Smaller(granted),
        Some(done) => done,
        None if peer.is_some() => Block::Lost,
        None => Block::Silent,
    }
}

fn acknowledge(carrier: &mut dyn Carrier, from_port: u16, peer: SocketAddrV4) {
    let mut ack = [0; 4];
    if emit_ack(&mut ack, 0).is_some() {
        carrier.send(from_port, peer, &ack);
    }
}

/// Whether a PXE boot server answers on its port: a REQUEST as firmware sends it that has an address already.
pub(super) fn boot_server(
    carrier: &mut dyn Carrier,
    server: SocketAddrV4,
    mac: MacAddr,
    address: Ipv4Addr,
    arch: u16,
) -> bool {
    let xid = 0xd0c7_4011;
    let message = |buffer: &mut [u8]| {
        let mut header = Header::request_from(mac, xid);
        header.ciaddr = address;
        let mut out = Emitter::new(buffer, &header)?;
        out.option(code::MESSAGE_TYPE, &[MessageType::Request.code()])?;
        out.option(code::MAX_SIZE, &1472u16.to_be_bytes())?;
        let class = format!("PXEClient:Arch:{arch:05}:UNDI:003016");
        out.option(code::VENDOR_CLASS, class.as_bytes())?;
        out.option(code::CLIENT_ARCHITECTURE, &arch.to_be_bytes())?;
        out.option(code::CLIENT_NDI, &[1, 3, 16])?;
        let mut id = [0; 17];
        id[1..].copy_from_slice(&Uuid([0; 16]).to_smbios());
        out.option(code::CLIENT_MACHINE_ID, &id)?;
        out.finish()
    };
    let mut buffer = [0; 600];
    let Some(len) = message(&mut buffer) else { return false };
    for _ in 0..TRIES {
        carrier.send(68, server, buffer.get(..len).unwrap_or_default());
        let until = Instant::now() + PATIENCE;
        let mut late = 0;
        while late < LATE_MAX {
            let left = until.saturating_duration_since(Instant::now());
            late += usize::from(left.is_zero());
            match carrier.hear(left) {
                Some(Heard::Udp { from, payload, .. }) if from == server => {
                    let answer = Message::parse(&payload);
                    if answer.is_ok_and(|answer| answer.op() == 2 && answer.xid() == xid) {
                        return true;
                    }
                }
                Some(Heard::Unreachable { to, .. }) if to == server => return false,
                Some(_) => {}
                None => break,
            }
        }
    }
    false
}
