//! What happens per packet allocates nothing, once the first packet of its kind has been seen.
//!
//! Counted by an allocator that counts. A path that has to allocate is listed with how often, so that more is noticed.

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use allocation_counter::measure;
use bootstorm::jobs::image::Images;
use bootstorm::jobs::script::{Context, Hints, Policy, compose};
use bootstorm::jobs::table::table;
use bootstorm::jobs::token::{BootId, TokenKey};
use bootstorm::jobs::{Identity, Image};
use bootstorm::proto::dhcp::{
    Answer, BootFile, BootPolicy, Input, Interface, Mode, Network, Server, ServerPort, Settings, Subnet,
    Verdict, Wish,
};
use bootstorm::proto::firmware::Firmware;
use bootstorm::proto::http::{FileMeta, answer_file, identity};
use bootstorm::proto::tftp::{Limits, Transfer};
use bootstorm::wire::MacAddr;
use bootstorm::wire::dhcp::{Emitter, Header, Message, MessageType, code};
use bootstorm::wire::frame::{UDP_PAYLOAD_OFFSET, UdpHeader, emit_udp_frame, parse_udp_frame};
use bootstorm::wire::http::{Next, next_request};
use bootstorm::wire::tftp::{Mode as TransferMode, Options, Packet, Request};

const DISCOVER: &[u8] = include_bytes!("fuzz/seeds/dhcp_message/discover-uefi");
const GET: &[u8] = include_bytes!("fuzz/seeds/http_head/get-range");
const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Allocations for one script, the menu of a server without images: all of them are in reading who asks.
const SCRIPT_ALLOCATIONS: u64 = 16;

/// Runs `work` once to fill what is kept, then counts over `times` more.
fn allocations(times: u32, mut work: impl FnMut()) -> u64 {
    work();
    measure(|| (0..times).for_each(|_| work())).count_total
}

struct Loader;

impl BootPolicy for Loader {
    fn resolve(
        &mut self,
        _: &Identity,
        _: &Firmware,
        _: Ipv4Addr,
        _: &Wish<'_>,
        file: &mut BootFile,
    ) -> Answer {
        file.write_str("snponly.efi").expect("a short name fits");
        Answer::Boot
    }
}

fn interface() -> Interface {
    Interface {
        index: 1,
        name: "eth0".into(),
        addr: US,
        network: Network::new(US, 24).expect("a good prefix"),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    }
}

fn server(mode: Mode) -> Server {
    let subnet = Subnet {
        range: Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 200))),
        router: Some(US),
        dns: vec![US],
        ..Subnet::new(Network::new(US, 24).expect("a good prefix"))
    };
    Server::new(Settings { mode, subnets: vec![subnet], ..Settings::default() }, 1)
}

/// One whole answer: frame in, message, decision, frame out.
fn answer(server: &mut Server, interface: &Interface, now: Instant, frame: &[u8], out: &mut [u8]) -> usize {
    let datagram = parse_udp_frame(frame).expect("a good frame");
    let input = Input {
        interface,
        port: ServerPort::Dhcp,
        src: datagram.src,
        src_mac: Some(datagram.src_mac),
        dst: *datagram.dst.ip(),
        local: US,
        bytes: datagram.payload,
    };
    let Verdict::Reply(output, _) = server.handle(now, &input, &mut Loader, &mut out[UDP_PAYLOAD_OFFSET..])
    else {
        panic!("a machine that asks is answered");
    };
    let header = UdpHeader {
        src_mac: interface.mac,
        dst_mac: datagram.src_mac,
        src: SocketAddrV4::new(US, 67),
        dst: SocketAddrV4::new(Ipv4Addr::BROADCAST, 68),
        ttl: 64,
        ip_id: 0,
    };
    emit_udp_frame(out, &header, output.len).expect("a reply fits a frame")
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; UDP_PAYLOAD_OFFSET + payload.len()];
    frame[UDP_PAYLOAD_OFFSET..].copy_from_slice(payload);
    let header = UdpHeader {
        src_mac: Message::parse(payload).expect("a message").mac().expect("a machine's"),
        dst_mac: MacAddr::BROADCAST,
        src: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        dst: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
        ttl: 64,
        ip_id: 0,
    };
    emit_udp_frame(&mut frame, &header, payload.len()).expect("a frame");
    frame
}

#[test]
fn a_counted_allocation_is_seen() {
    assert_eq!(allocations(10, || drop(black_box(Vec::<u8>::with_capacity(100)))), 10);
}

#[test]
fn a_dhcp_offer_allocates_nothing_from_frame_to_frame() {
    let (interface, now, frame) = (interface(), Instant::now(), frame(DISCOVER));
    for mode in [Mode::Proxy, Mode::Full] {
        let mut server = server(mode);
        let mut out = [0; 1514];
        // A machine that asks faster than 100 times a second is not heard.
        let mut now = now;
        let count = allocations(100, || {
            now += Duration::from_millis(20);
            black_box(answer(&mut server, &interface, now, &frame, &mut out));
        });
        assert_eq!(count, 0, "{mode:?}");
    }
}

#[test]
fn a_dhcp_ack_allocates_nothing_for_a_machine_that_has_its_lease() {
    let (interface, now) = (interface(), Instant::now());
    let mut server = server(Mode::Full);
    let mut out = [0; 1514];
    let len = answer(&mut server, &interface, now, &frame(DISCOVER), &mut out);
    let offer = parse_udp_frame(&out[..len]).expect("a frame").payload.to_vec();
    let offer = Message::parse(&offer).expect("an offer");
    let mut request = [0; 576];
    let header = Header::request_from(offer.mac().expect("the machine's"), offer.xid());
    let mut emitter = Emitter::new(&mut request, &header).expect("room");
    emitter.option(code::MESSAGE_TYPE, &[MessageType::Request.code()]).expect("room");
    emitter.option(code::REQUESTED_ADDRESS, &offer.yiaddr().octets()).expect("room");
    emitter.option(code::SERVER_ID, &US.octets()).expect("room");
    let len = emitter.finish().expect("room");
    let request = frame(&request[..len]);
    let mut now = now;
    let count = allocations(100, || {
        now += Duration::from_millis(20);
        black_box(answer(&mut server, &interface, now, &request, &mut out));
    });
    assert_eq!(count, 0);
}

#[test]
fn a_tftp_block_and_its_ack_allocate_nothing() {
    for windowsize in [None, Some(16)] {
        let options = Options { blksize: Some(1428), windowsize, ..Options::default() };
        let request = Request { write: false, name: b"x", mode: TransferMode::Octet, options };
        let now = Instant::now();
        let (mut transfer, _) = Transfer::accept(now, &request, u64::MAX / 2, &Limits::default());
        transfer.poll_transmit(now);
        transfer.handle_ack(now, 0);
        let mut block = 0u16;
        let count = allocations(1000, || {
            while black_box(transfer.poll_transmit(now)).is_some() {}
            block = block.wrapping_add(windowsize.unwrap_or(1));
            let ack = [0, 4, (block >> 8) as u8, block as u8];
            if let Ok(Packet::Ack(block)) = Packet::parse(black_box(&ack)) {
                black_box(transfer.handle_ack(now + Duration::from_millis(1), block));
            }
        });
        assert_eq!(count, 0, "windowsize {windowsize:?}");
    }
}

#[test]
fn an_http_head_for_a_file_allocates_nothing() {
    let meta = FileMeta {
        len: 6 << 30,
        etag: "\"1-2-3\"",
        modified: SystemTime::UNIX_EPOCH,
        content_type: "application/octet-stream",
    };
    let now = SystemTime::now();
    let mut head = Vec::with_capacity(1024);
    let count = allocations(100, || {
        let Next::Request { request, .. } = next_request(black_box(GET)) else { panic!("a good request") };
        head.clear();
        black_box(answer_file(&request, &meta, now, &mut head).body_len);
    });
    assert_eq!(count, 0);
}

struct NoImages;

impl Images for NoImages {
    fn image(&self, _: &str) -> Option<&Image> {
        None
    }
    fn list(&self) -> &[Arc<Image>] {
        &[]
    }
}

/// A script is asked for a few times a boot, and its text is built: that allocates, but no more than it did.
#[test]
fn a_script_from_request_to_text_allocates_no_more_than_it_did() {
    let get = b"GET /ipxe?mac=52:54:00:12:34:56&uuid=4c4c4544-0042-3510-8052-b4c04f564231 HTTP/1.1\r\nHost: x\r\n\r\n";
    let (table, _writer) = table(0);
    let key = TokenKey::new([7; 32]);
    let policy = Policy::default();
    let context = Context {
        base_url: "http://10.77.0.1:4433",
        boot: BootId(1),
        key: &key,
        now_unix: 1,
        policy: &policy,
        hints: Hints::default(),
    };
    let mut text = String::with_capacity(8192);
    let mut asked = 0;
    let count = allocations(100, || {
        let Next::Request { request, .. } = next_request(black_box(get)) else { panic!("a good request") };
        let who = identity(&request);
        asked += u32::from(who.mac.is_some());
        black_box(compose(table.view().decide(&who), &NoImages, &who, &context, &mut text));
    });
    assert!(asked == 101 && text.starts_with("#!ipxe"));
    assert!(count <= 100 * SCRIPT_ALLOCATIONS, "{} allocations a script", count as f64 / 100.0);
}
