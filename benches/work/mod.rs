//! The parts on a packet's path as work that can be done again and again: timed by `parts`, counted by `instructions`.

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bootstorm::jobs::image::Images;
use bootstorm::jobs::script::{Context, Hints, Policy, compose};
use bootstorm::jobs::table::table;
use bootstorm::jobs::token::{BootId, TokenKey};
use bootstorm::jobs::{Identity, Image};
use bootstorm::proto::dhcp::{
    Answer, BootFile, BootPolicy, Input, Interface, Mode as DhcpMode, Network, Server, ServerPort, Settings,
    Subnet, Wish,
};
use bootstorm::proto::firmware::Firmware;
use bootstorm::proto::http::{FileMeta, answer_file, identity};
use bootstorm::proto::tftp::{Limits, Transfer};
use bootstorm::wire::MacAddr;
use bootstorm::wire::dhcp::Message;
use bootstorm::wire::http::{Next, next_request};
use bootstorm::wire::tftp::{Mode, Options, Packet, Request};

const DISCOVER: &[u8] = include_bytes!("../../tests/fuzz/seeds/dhcp_message/discover-uefi");
const RRQ: &[u8] = include_bytes!("../../tests/fuzz/seeds/tftp_packet/rrq-uefi-size-query");
const GET: &[u8] = include_bytes!("../../tests/fuzz/seeds/http_head/get-range");
const SCRIPT: &[u8] =
    b"GET /ipxe?mac=52:54:00:12:34:56&uuid=4c4c4544-0042-3510-8052-b4c04f564231 HTTP/1.1\r\nHost: x\r\n\r\n";
const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Does its part once.
pub(crate) type Work = Box<dyn FnMut()>;

/// Every part by its name.
pub(crate) fn all() -> Vec<(&'static str, Work)> {
    vec![
        ("parse/dhcp/discover_uefi", parse_discover()),
        ("parse/tftp/rrq", Box::new(|| _ = black_box(Packet::parse(black_box(RRQ)).is_ok()))),
        ("parse/http/get_range", parse_get()),
        ("answer/http/range", answer_range()),
        ("machine/tftp/block_and_ack", block_and_ack()),
        ("answer/dhcp/discover_uefi_proxy", answer_discover(DhcpMode::Proxy)),
        ("answer/dhcp/discover_uefi_full", answer_discover(DhcpMode::Full)),
        ("table/decide_nobody", decide()),
        ("answer/script/menu", answer_script()),
    ]
}

fn parse_discover() -> Work {
    Box::new(|| {
        let message = Message::parse(black_box(DISCOVER)).expect("a good message");
        black_box((message.mac(), message.arch(), message.uuid()));
    })
}

fn parse_get() -> Work {
    Box::new(|| _ = black_box(matches!(next_request(black_box(GET)), Next::Request { .. })))
}

fn answer_range() -> Work {
    let Next::Request { request, .. } = next_request(GET) else { panic!("a good request") };
    let now = SystemTime::now();
    let mut head = Vec::with_capacity(1024);
    Box::new(move || {
        let meta = FileMeta {
            len: 6 << 30,
            etag: "\"1-2-3\"",
            modified: SystemTime::UNIX_EPOCH,
            content_type: "application/octet-stream",
        };
        head.clear();
        black_box(answer_file(black_box(&request), &meta, now, &mut head).body_len);
    })
}

fn block_and_ack() -> Work {
    let options = Options { blksize: Some(1428), ..Options::default() };
    let request = Request { write: false, name: b"x", mode: Mode::Octet, options };
    let now = Instant::now();
    let (mut transfer, _) = Transfer::accept(now, &request, u64::MAX / 2, &Limits::default());
    transfer.poll_transmit(now);
    transfer.handle_ack(now, 0);
    let mut block = 0u16;
    Box::new(move || {
        black_box(transfer.poll_transmit(now));
        block = block.wrapping_add(1);
        black_box(transfer.handle_ack(now, block));
    })
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

/// A whole answer to a DISCOVER: what `tests/allocations.rs` counts the allocations of.
fn answer_discover(mode: DhcpMode) -> Work {
    let network = Network::new(US, 24).expect("a good prefix");
    let interface = Interface {
        index: 1,
        name: "eth0".into(),
        addr: US,
        network,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    let subnet = Subnet {
        range: Some((Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 200))),
        ..Subnet::new(network)
    };
    let mut server = Server::new(Settings { mode, subnets: vec![subnet], ..Settings::default() }, 1);
    let mut out = [0; 1472];
    let now = Instant::now();
    Box::new(move || {
        let input = Input {
            interface: &interface,
            port: ServerPort::Dhcp,
            src: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            src_mac: None,
            dst: Ipv4Addr::BROADCAST,
            local: US,
            bytes: black_box(DISCOVER),
        };
        black_box(server.handle(now, &input, &mut Loader, &mut out));
    })
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

fn decide() -> Work {
    let (table, _writer) = table(0);
    let Next::Request { request, .. } = next_request(SCRIPT) else { panic!("a good request") };
    let who = identity(&request);
    Box::new(move || _ = black_box(table.view().decide(black_box(&who))))
}

/// A whole script, from the request's bytes to its text.
fn answer_script() -> Work {
    let (table, _writer) = table(0);
    let key = TokenKey::new([7; 32]);
    let policy = Policy::default();
    let mut text = String::with_capacity(8192);
    Box::new(move || {
        let Next::Request { request, .. } = next_request(black_box(SCRIPT)) else { panic!("a good request") };
        let who = identity(&request);
        let context = Context {
            base_url: "http://10.77.0.1:4433",
            boot: BootId(1),
            key: &key,
            now_unix: 1,
            policy: &policy,
            hints: Hints::default(),
        };
        black_box(compose(table.view().decide(&who), &NoImages, &who, &context, &mut text));
    })
}
